/* The text classifier in C: load a checkpoint, turn text into token ids, run. Include tessera/tessera.h.
 *
 *   tessera_classifier* model = NULL;
 *   tessera_classifier_load("models/movie-reviews", NULL, &model);
 *   tessera_classifier_tokenize(model, texts, lengths, n, ids);
 *   tessera_classifier_run(model, n, ids, NULL, &outputs);
 */
#ifndef TESSERA_TESSERA_CLASSIFIER_H_
#define TESSERA_TESSERA_CLASSIFIER_H_

#include "tessera/tessera.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tessera_precision {
  TESSERA_PRECISION_DEFAULT = 0, /* fp32 on the CPU, fp16 on a GPU */
  TESSERA_PRECISION_FP32 = 1,
  TESSERA_PRECISION_BF16 = 2,
  TESSERA_PRECISION_FP16 = 3, /* GPU only */
  TESSERA_PRECISION_FP64 = 4  /* CPU only: the oracle, deliberately slow */
} tessera_precision;

typedef struct tessera_classifier_options {
  size_t struct_bytes;
  int32_t device;           /* default TESSERA_CPU */
  int32_t precision;        /* tessera_precision */
  int32_t takes_embeddings; /* 0 (default): token ids; 1: embeddings */
  int32_t num_threads;      /* CPU: of the computation; GPU: that copy input into pinned memory. 0: every processor */
  int64_t micro_batch;      /* GPU: sentences computed at once; 0: chosen from the model */
  const char* form;         /* GPU: "auto" (NULL too), "direct", "dft", "distinct", "vocab" */
  double expert_threshold;  /* GPU: experts whose router weight is smaller are skipped, an approximation; 0: none */
} tessera_classifier_options;

/* Sizes of a loaded model. */
typedef struct tessera_classifier_info {
  size_t struct_bytes;
  int64_t vocab_size;
  int64_t sequence_length; /* tokens a sentence is cut or padded to */
  int64_t embedding_size;
  int64_t feature_size;
  int64_t num_experts;
  int64_t num_classes;
  int64_t preferred_batch; /* sentences the back end likes to be given at once */
  int64_t has_vocabulary;  /* 0: texts cannot be tokenized */
  size_t device_bytes;     /* GPU: device memory taken, all of it at load: a run needs no workspace */
} tessera_classifier_info;

/* Written completely; a sentence whose status is not 0 gets NaN. NULL members are not wanted. */
typedef struct tessera_classifier_outputs {
  size_t struct_bytes;
  float* logits;         /* [num_sentences, num_classes], required */
  float* router_weights; /* [num_sentences, num_experts] */
  float* features;       /* [num_sentences, feature_size] */
  uint8_t* status;       /* [num_sentences]: 0 ok, 1 an id outside the vocabulary, 2 not finite */
} tessera_classifier_outputs;

typedef struct tessera_classifier tessera_classifier;

TESSERA_API void tessera_classifier_options_init_sized(tessera_classifier_options* options, size_t struct_bytes);
TESSERA_API void tessera_classifier_info_init_sized(tessera_classifier_info* info, size_t struct_bytes);
TESSERA_API void tessera_classifier_outputs_init_sized(tessera_classifier_outputs* outputs, size_t struct_bytes);
TESSERA_INLINE void tessera_classifier_options_init(tessera_classifier_options* options) {
  tessera_classifier_options_init_sized(options, sizeof(*options));
}
TESSERA_INLINE void tessera_classifier_info_init(tessera_classifier_info* info) {
  tessera_classifier_info_init_sized(info, sizeof(*info));
}
TESSERA_INLINE void tessera_classifier_outputs_init(tessera_classifier_outputs* outputs) {
  tessera_classifier_outputs_init_sized(outputs, sizeof(*outputs));
}

/* `directory` holds config.json, vocab.txt, model.safetensors. `options` NULL: the defaults. */
TESSERA_API tessera_status tessera_classifier_load(const char* directory, const tessera_classifier_options* options,
                                                   tessera_classifier** classifier);
TESSERA_API void tessera_classifier_destroy(tessera_classifier* classifier);

TESSERA_API tessera_status tessera_classifier_get_info(const tessera_classifier* classifier,
                                                       tessera_classifier_info* info);
/* One line, as it was after loading: back end, precision, form and the reason for it, memory. Valid as long as the
 * classifier. */
TESSERA_API const char* tessera_classifier_description(const tessera_classifier* classifier);
/* NULL for a class that is not there. Valid as long as the classifier. */
TESSERA_API const char* tessera_classifier_class_name(const tessera_classifier* classifier, int64_t class_idx);

/* texts[i] is UTF-8 of lengths[i] bytes, without NUL bytes, 16 MiB at most; ids [num_texts, sequence_length] is
 * written. Any number of threads at a time. */
TESSERA_API tessera_status tessera_classifier_tokenize(const tessera_classifier* classifier, const char* const* texts,
                                                       const size_t* lengths, int64_t num_texts, int32_t* ids);

/* The same, and how many words each text has before it is cut to sequence_length, and how many of those that are left
 * the vocabulary lacks: num_words, num_unknown [num_texts]; either may be NULL. */
TESSERA_API tessera_status tessera_classifier_tokenize_counted(const tessera_classifier* classifier,
                                                               const char* const* texts, const size_t* lengths,
                                                               int64_t num_texts, int32_t* ids, int64_t* num_words,
                                                               int64_t* num_unknown);

/* Host memory, also on a GPU: ids [num_sentences, sequence_length] or embeddings [num_sentences, embedding_size,
 * sequence_length], whichever the options said; the other NULL. Returns when the outputs are written; they overlap
 * neither each other nor the input. One run at a time. */
TESSERA_API tessera_status tessera_classifier_run(tessera_classifier* classifier, int64_t num_sentences,
                                                  const int32_t* ids, const float* embeddings,
                                                  const tessera_classifier_outputs* outputs);

#ifdef __cplusplus
}
#endif

#endif
