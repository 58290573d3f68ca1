#include "tessera/classifier/cuda_classifier.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <new>
#include <utility>

#include "classifier/cuda_form.h"
#include "classifier/cuda_lane.h"
#include "classifier/cuda_weights.h"
#include "cuda/core/lost_device.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/core/thread_pool.h"
#include "tessera/cuda/device.h"

namespace tessera::classifier {
namespace {

size_t gibibytes(size_t bytes) { return bytes >> 30; }

std::string usable_device_name(int device) {
  std::string why_none;
  const std::vector<cuda::DeviceFacts> devices = cuda::devices(why_none);
  const auto is_it = [&](const cuda::DeviceFacts& each) { return each.index == device; };
  const auto found = std::find_if(devices.begin(), devices.end(), is_it);
  if (found == devices.end()) {
    throw Error(str_cat("device cuda:", device), devices.empty() ? why_none : "no such device",
                devices.empty() ? "a Hopper GPU" : str_cat("one of 0 to ", devices.size() - 1));
  }
  if (const std::string why = cuda::why_unusable(*found); !why.empty())
    throw Error(str_cat("device cuda:", device), why);
  return found->name;
}

std::vector<std::unique_ptr<CudaClassifier>> make_lanes(const Model& model, const CudaLane::Options& options,
                                                        const std::shared_ptr<const CudaWeights>& weights,
                                                        int num_lanes, int64_t micro_batch) {
  while (true) {
    try {
      std::vector<std::unique_ptr<CudaClassifier>> lanes;
      for (int i = 0; i < num_lanes; ++i) {
        lanes.push_back(std::make_unique<CudaLane>(model.config, options, weights, micro_batch));
      }
      return lanes;
    } catch (const std::bad_alloc&) {
      if (micro_batch == 1) {
        throw Error(str_cat("memory of cuda:", options.device), "too little for one sentence at a time",
                    "a smaller model, fewer lanes or a GPU with more memory");
      }
      micro_batch /= 2;
    }
  }
}

std::vector<std::unique_ptr<CudaClassifier>> make_on_device(const Model& model, const CudaOptions& options,
                                                            const std::string& name) {
  TESSERA_CUDA_CHECK(cudaSetDevice(options.device));
  size_t free_bytes = 0, all_bytes = 0;
  TESSERA_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &all_bytes));
  CudaLane::Options lane;
  lane.input = options.input;
  lane.form = select_cuda_form(model.config, options, all_bytes);
  lane.device = options.device;
  lane.device_name = name;
  lane.num_staging_threads = options.num_staging_threads > 0 ? options.num_staging_threads : available_processors();
  ThreadPool pool(lane.num_staging_threads);
  std::shared_ptr<const CudaWeights> weights;
  try {
    weights = std::make_shared<const CudaWeights>(model, lane.form, options.input, pool);
  } catch (const std::bad_alloc&) {
    throw Error(str_cat("memory of cuda:", options.device),
                str_cat(gibibytes(free_bytes), " of ", gibibytes(all_bytes), " GiB free"),
                str_cat("more: the weights do not fit in form ", form_name(lane.form.form)));
  }
  return make_lanes(model, lane, weights, options.num_lanes, select_micro_batch(model.config, lane.form, options));
}

}  // namespace

std::vector<std::unique_ptr<CudaClassifier>> make_cuda_classifiers(std::shared_ptr<const Model> model,
                                                                   const CudaOptions& options) {
  TESSERA_CHECK(model != nullptr && options.num_lanes >= 1 && options.micro_batch >= 0, options.num_lanes,
                options.micro_batch);
  model->config.validate("model");
  if (options.input == InputKind::ids && model->weights.embedding.empty()) {
    throw Error("model", "no tensor 'embedding.weight'", "one: text and token ids need it, embeddings as input do not");
  }
  const std::string name = usable_device_name(options.device);
  try {
    cuda::throw_if_lost(options.device);
    return make_on_device(*model, options, name);
  } catch (const cuda::CudaError& error) {
    throw DeviceError(cuda::describe_failure(options.device, error));
  }
}

}  // namespace tessera::classifier
