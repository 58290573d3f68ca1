/* A C11 program that uses the shared library: an MoE layer compared with plain loops, two sentences, and what a mistake
 * is answered with. Build it with pkg-config,
 *
 *   cc -std=c11 program.c $(pkg-config --cflags --libs tessera) -lm -o program
 *
 * or with CMake (CMakeLists.txt beside this file). Run it with a classifier's checkpoint: program models/movie-reviews
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tessera/tessera.h"

enum { kTokens = 6, kHidden = 16, kInner = 8, kExperts = 4, kTopK = 2 };

/* Static arrays instead of the heap, aligned as the layer asks for. */
static _Alignas(64) float x[kTokens * kHidden], gate_up[kExperts * 2 * kInner * kHidden];
static _Alignas(64) float down[kExperts * kHidden * kInner], topk_weights[kTokens * kTopK], out[kTokens * kHidden];
static _Alignas(64) int32_t topk_ids[kTokens * kTopK];

static int failed(const char* what) {
  fprintf(stderr, "%s: %s\n", what, tessera_last_error());
  return 1;
}

static void fill_random(float* values, size_t count) {
  for (size_t i = 0; i < count; ++i) values[i] = (float)(rand() % 2001 - 1000) / 1000.0f;
}

/* Component `c` of what the layer is defined to give for `token`. */
static double expected_output(size_t token, size_t c) {
  double sum = 0;
  for (size_t slot = token * kTopK; slot < (token + 1) * kTopK; ++slot) {
    const size_t expert = (size_t)topk_ids[slot];
    for (size_t i = 0; i < kInner; ++i) {
      const float* gate_row = gate_up + (expert * 2 * kInner + i) * kHidden;
      const float* up_row = gate_row + kInner * kHidden;
      double gate = 0, up = 0;
      for (size_t h = 0; h < kHidden; ++h) {
        gate += (double)gate_row[h] * (double)x[token * kHidden + h];
        up += (double)up_row[h] * (double)x[token * kHidden + h];
      }
      sum +=
          (double)topk_weights[slot] * (double)down[(expert * kHidden + c) * kInner + i] * up * gate / (1 + exp(-gate));
    }
  }
  return sum;
}

static tessera_moe_config small_layer(void) {
  tessera_moe_config config;
  tessera_moe_config_init(&config);
  config.hidden_size = kHidden;
  config.intermediate_size = kInner;
  config.num_experts = kExperts;
  config.top_k = kTopK;
  config.dtype = TESSERA_F32;
  return config;
}

static int check_moe(void) {
  fill_random(x, sizeof x / sizeof *x);
  fill_random(gate_up, sizeof gate_up / sizeof *gate_up);
  fill_random(down, sizeof down / sizeof *down);
  fill_random(topk_weights, sizeof topk_weights / sizeof *topk_weights);
  for (size_t slot = 0; slot < kTokens * kTopK; ++slot) topk_ids[slot] = (int32_t)(slot * 3 % kExperts);

  const tessera_moe_config config = small_layer();
  tessera_moe_weights weights;
  tessera_moe_weights_init(&weights);
  weights.gate_up = gate_up;
  weights.down = down;
  tessera_moe* layer = NULL;
  if (tessera_moe_create(&config, &weights, &layer) != TESSERA_OK) return failed("create");

  size_t workspace_bytes = 0;
  void* workspace = NULL;
  if (tessera_moe_workspace_bytes(layer, kTokens, &workspace_bytes) != TESSERA_OK) return failed("workspace_bytes");
  if (tessera_allocate(TESSERA_CPU, workspace_bytes, &workspace) != TESSERA_OK) return failed("allocate");

  tessera_moe_inputs inputs;
  tessera_moe_inputs_init(&inputs);
  inputs.num_tokens = kTokens;
  inputs.x = x;
  inputs.topk_ids = topk_ids;
  inputs.topk_weights = topk_weights;
  inputs.out = out;
  if (tessera_moe_run(layer, &inputs, workspace, workspace_bytes, NULL) != TESSERA_OK) return failed("run");
  tessera_free(TESSERA_CPU, workspace);
  tessera_moe_destroy(layer);

  double largest_error = 0;
  for (size_t token = 0; token < kTokens; ++token) {
    for (size_t c = 0; c < kHidden; ++c) {
      const double error = fabs((double)out[token * kHidden + c] - expected_output(token, c));
      if (!(error <= largest_error)) largest_error = error;
    }
  }
  printf("moe: largest error %.1e\n", largest_error);
  return !(largest_error < 1e-4); /* sums of 8 to 16 products of a few units, in fp32 */
}

static int check_classifier(const char* directory) {
  enum { kMaxClasses = 16 };
  const char* const texts[] = {"A moving and funny film, beautifully acted.", "A dull, stupid mess: boring."};
  const char* const expected[] = {"positive", "negative"};
  const size_t lengths[] = {strlen(texts[0]), strlen(texts[1])};

  tessera_classifier* model = NULL;
  if (tessera_classifier_load(directory, NULL, &model) != TESSERA_OK) return failed("load");
  tessera_classifier_info info;
  tessera_classifier_info_init(&info);
  if (tessera_classifier_get_info(model, &info) != TESSERA_OK) return failed("get_info");
  if (info.num_classes > kMaxClasses) return 1;

  int32_t* ids = malloc(2 * (size_t)info.sequence_length * sizeof *ids);
  float logits[2 * kMaxClasses];
  tessera_classifier_outputs outputs;
  tessera_classifier_outputs_init(&outputs);
  outputs.logits = logits;
  if (ids == NULL) return 1;
  if (tessera_classifier_tokenize(model, texts, lengths, 2, ids) != TESSERA_OK) return failed("tokenize");
  if (tessera_classifier_run(model, 2, ids, NULL, &outputs) != TESSERA_OK) return failed("run");

  int wrong = 0;
  for (int64_t i = 0; i < 2; ++i) {
    int64_t label = 0;
    for (int64_t c = 1; c < info.num_classes; ++c) {
      if (logits[i * info.num_classes + c] > logits[i * info.num_classes + label]) label = c;
    }
    const char* name = tessera_classifier_class_name(model, label);
    printf("classifier: \"%s\" is %s\n", texts[i], name);
    wrong = wrong || strcmp(name, expected[i]) != 0;
  }
  free(ids);
  tessera_classifier_destroy(model);
  return wrong;
}

/* A mistake gives a status and a message that names its place; nothing is made, nothing printed, nothing ends. */
static int check_errors(void) {
  tessera_moe_config config = small_layer();
  config.hidden_size = kHidden + 1;
  tessera_moe_weights weights;
  tessera_moe_weights_init(&weights);
  weights.gate_up = gate_up;
  weights.down = down;
  tessera_moe* layer = NULL;
  const tessera_status status = tessera_moe_create(&config, &weights, &layer);
  printf("hidden_size of %d: status %d, \"%s\"\n", config.hidden_size, (int)status, tessera_last_error());
  if (status != TESSERA_INVALID_ARGUMENT || layer != NULL) return 1;
  if (strstr(tessera_last_error(), "hidden_size") == NULL || strstr(tessera_last_error(), "got 17") == NULL) return 1;

  tessera_classifier* model = NULL;
  if (tessera_classifier_load("no/such/directory", NULL, &model) != TESSERA_INVALID_ARGUMENT || model != NULL) return 1;
  printf("no directory: \"%s\"\n", tessera_last_error());
  return strstr(tessera_last_error(), "no/such/directory") == NULL;
}

int main(int argc, char** argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: %s DIRECTORY\n", argv[0]);
    return 2;
  }
  printf("tessera %s\n", tessera_version());
  const int moe = check_moe(), classifier = check_classifier(argv[1]), errors = check_errors();
  return moe || classifier || errors;
}
