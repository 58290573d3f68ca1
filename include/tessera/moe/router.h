// Routing: from a router's logits to the experts of each token and their weights.
//
//   RouterConfig config{.kind = RouterKind::topk_softmax, .num_experts = 128, .top_k = 8, .logits_dtype = DType::bf16};
//   route(config, {.logits = logits, .topk_ids = ids, .topk_weights = weights, .num_tokens = num_tokens});
//
// The definition, per token; a GPU computes the same bits. Every operation below is one fp32 operation rounded to
// nearest; exp and sigmoid are those of tessera/core/exact_math.h. Logits l[i] are converted to fp32 first (exact).
//
//   score     s[i] = sigmoid(l[i]) + bias[i] for sigmoid_grouped (without bias: sigmoid(l[i])), else s[i] = l[i]
//   choice    k times the expert of highest score not yet chosen: order (score descending, id ascending), numbers
//             before NaN, +0 equal to -0. The slots of a token are in the order of choice.
//   groups    sigmoid_grouped chooses only from the topk_groups groups of highest group score, in the same order (ties
//             go to the lowest group). Group score: the sum, rounded once, of the two highest s in the group, a NaN
//             counting as -inf; in a group of one expert, that s, a NaN again counting as -inf.
//   weights   in the order of choice, c[j] the expert of slot j, m the largest logit that is a number:
//               e[i] = 1 if l[i] == m, else exp(l[i] - m); a NaN gives 0              the softmax kinds
//               softmax_topk           w[j] = e[c[j]] / sum of e over all experts
//               topk_softmax           w[j] = e[c[j]] / sum of e over the chosen; softmax_topk_renormalize too
//               both sigmoid kinds     w[j] = sigmoid(l[c[j]]) / the sum of these over the chosen, a NaN counting as 0
//                                      there; all 0 if that sum is 0
//             then w[j] = w[j] * scale. A chosen expert whose logit is NaN has weight NaN, bits 0x7FC00000.
//   sums      32 partial sums: p[n] adds the terms n, n + 32, n + 64, ... in this order, starting from +0; then, for
//             d = 16, 8, 4, 2, 1, p[n] = p[n] + p[n + d] for n < d; the sum is p[0]. (One warp, one butterfly.)
//
// So: a NaN is chosen only where fewer than k numbers can be; a row of NaN alone gets ids 0 .. k-1 with NaN weights and
// is counted; infinities take part as the largest and smallest numbers (several +inf share the softmax); no row looks
// at another. Ids are distinct and in [0, E) whatever the logits hold.
#pragma once

#include <cstdint>

#include "tessera/core/router_config.h"

namespace tessera::moe {

/// Row-major memory of the device that routes. Logits and bias 16-byte aligned, the others 4-byte aligned.
struct RouterInputs {
  const void* logits = nullptr;     ///< [T, E] of logits_dtype
  const float* bias = nullptr;      ///< [E], sigmoid_grouped only; null: none
  int32_t* topk_ids = nullptr;      ///< [T, k], written
  float* topk_weights = nullptr;    ///< [T, k], written
  int32_t* num_nan_rows = nullptr;  ///< [1]: the number of all-NaN rows is added to it; null: not counted
  int32_t num_tokens = 0;           ///< T; 0 does nothing
};

/// Throws Error naming the field for a configuration that is not supported; the same on every back end.
void validate(const RouterConfig& config);
/// Throws Error naming the argument for inputs that cannot be right. `memory` is what pointers should be, in words.
void validate(const RouterConfig& config, const RouterInputs& inputs, const char* memory = "host memory");

/// On the host, in the calling thread, without allocation. Throws as validate does.
void route(const RouterConfig& config, const RouterInputs& inputs);

}  // namespace tessera::moe
