#include "cuda/kernels/output_layer/launch.h"

#include "cuda/core/cuda_check.h"
#include "cuda/core/launch.h"
#include "cuda/core/operand_check.h"
#include "cuda/kernels/output_layer/kernel.cuh"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::kernels::output_layer {

void launch(const Args& args, cudaStream_t stream) {
  if (args.num_records == 0) return;
  if (args.num_records < 0) throw Error("output_layer num_records", str_cat(args.num_records), "at least 0");
  if (args.in_features < 1) throw Error("output_layer in_features", str_cat(args.in_features), "at least 1");
  if (args.num_classes < 1) throw Error("output_layer num_classes", str_cat(args.num_classes), "at least 1");
  if (args.stride < args.in_features)
    throw Error("output_layer stride", str_cat(args.stride), str_cat("at least ", args.in_features));
  cuda::check_pointer("output_layer x", args.x, alignof(float));
  cuda::check_pointer("output_layer weight", args.weight, alignof(float));
  cuda::check_pointer("output_layer bias", args.bias, alignof(float));
  cuda::check_pointer("output_layer logits", args.logits, alignof(float));
  const int64_t ctas = (args.num_records + kWarps - 1) / kWarps;
  cuda::launch_overlapping(output_layer_kernel, ctas, kPolicy.threads, args, stream);
}

}  // namespace tessera::kernels::output_layer
