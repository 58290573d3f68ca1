// What a router does with its logits: the kind of scores, how many experts, and the limits of grouped choice. The
// arithmetic is defined in tessera/moe/router.h.
#pragma once

#include <cstdint>

#include "tessera/core/dtype.h"

namespace tessera {

enum class RouterKind : uint8_t {
  softmax_topk,              ///< probabilities of all experts, the k largest of them as they are
  topk_softmax,              ///< the k largest logits, softmax over those
  softmax_topk_renormalize,  ///< the k largest probabilities, divided by their sum; equals topk_softmax
  sigmoid_grouped,           ///< sigmoid + bias chooses among the best groups; weights from the sigmoid, renormalised
  sigmoid_renormalize,       ///< the k largest sigmoids, divided by their sum
};

struct RouterConfig {
  RouterKind kind = RouterKind::topk_softmax;
  int32_t num_experts = 0;  ///< E, 1..1024
  int32_t top_k = 0;        ///< k, 1..min(32, E)
  int32_t num_groups = 1;   ///< sigmoid_grouped only, else 1: divides E; group g holds E / num_groups neighbours
  int32_t topk_groups = 1;  ///< groups that may be chosen from, 1..num_groups; together they hold at least k experts
  float scale = 1.0f;       ///< finite; every weight is multiplied by it, last
  DType logits_dtype = DType::f32;
};

}  // namespace tessera
