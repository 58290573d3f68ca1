#include "cuda/kernels/expert_gemm/launch.h"

#include <array>

#include "cuda/core/cuda_check.h"
#include "cuda/core/launch.h"
#include "cuda/core/tensor_map.h"
#include "cuda/kernels/expert_gemm/kernel.cuh"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::kernels::expert_gemm {
namespace {

constexpr std::array<uint32_t, 4> kWeightBox = {64, 128, 1, 1};

// A and weights as tensor maps. The weight's third dimension is gate/up: a tile's two boxes are found by coordinates
// alone.
CUtensorMap weight_map(const Args& args) {
  const auto k = static_cast<uint64_t>(args.k);
  const auto n = static_cast<uint64_t>(args.n);
  const uint64_t halves = args.role == Role::gate_up ? 2 : 1;
  const std::array<uint64_t, 4> extents = {k, n, halves, static_cast<uint64_t>(args.num_experts)};
  const std::array<uint64_t, 3> strides = {args.interleaved ? halves * k : k, args.interleaved ? k : n * k,
                                           halves * n * k};
  return gpu::make_tensor_map("weight", args.dtype, args.weight, extents, kWeightBox, strides);
}

// The shared experts are slices of one expert that is S times as wide: of the rows of its first weight, of the columns
// of its second.
CUtensorMap shared_weight_map(const Args& args) {
  if (args.num_shared_experts == 0) return {};
  const auto k = static_cast<uint64_t>(args.k);
  const auto n = static_cast<uint64_t>(args.n);
  const auto slices = static_cast<uint64_t>(args.num_shared_experts);
  const uint64_t halves = args.role == Role::gate_up ? 2 : 1;
  const std::array<uint64_t, 4> extents = {k, n, halves, slices};
  std::array<uint64_t, 3> strides = {k, slices * n * k, n * k};
  if (args.interleaved) strides = {halves * k, k, halves * n * k};
  if (args.role == Role::down) strides = {slices * k, slices * k, k};
  return gpu::make_tensor_map("shared weight", args.dtype, args.shared_weight, extents, kWeightBox, strides);
}

CUtensorMap row_map(const Args& args) {
  const std::array<uint64_t, 2> extents = {static_cast<uint64_t>(args.k), static_cast<uint64_t>(args.max_rows)};
  const std::array<uint32_t, 2> box = {64, cta::kTileRows};
  return gpu::make_tensor_map("intermediate", args.dtype, args.a, extents, box);
}

// Boxes of one warp's 16 rows: never larger than what an expert surely owns of them, see store_tile.
CUtensorMap out_map(const Args& args) {
  const std::array<uint64_t, 2> extents = {static_cast<uint64_t>(args.n), static_cast<uint64_t>(args.max_rows)};
  const std::array<uint32_t, 2> box = {64, kStagingRows};
  return gpu::make_tensor_map("out", args.dtype, args.out, extents, box);
}

// A launch of the kernel: the attributes must outlive the configuration that points at them.
template <class C, bool kMarked>
struct Launch {
  Launch(int32_t num_ctas, bool overlap_previous, cudaStream_t stream) {
    gpu::allow_shared_memory<kernel>(sizeof(SharedStorage<C>));
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = C::kCluster;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = overlap_previous ? 1 : 0;
    config.gridDim = dim3(static_cast<unsigned>(num_ctas / C::kCluster * C::kCluster));
    config.blockDim = dim3(C::kThreads);
    config.dynamicSmemBytes = sizeof(SharedStorage<C>);
    config.stream = stream;
    config.attrs = attributes.data();
    config.numAttrs = attributes.size();
  }
  Launch(const Launch&) = delete;

  static constexpr auto* kernel = &expert_gemm_kernel<C, kMarked>;
  std::array<cudaLaunchAttribute, 2> attributes{};
  cudaLaunchConfig_t config{};
};

template <class C, bool kMarked>
void launch_kernel(const Args& args, const LaunchOptions& options, cudaStream_t stream) {
  Params params{};
  params.plan = args.plan;
  params.gemm_idx = args.role == Role::down ? 1 : 0;
  params.tiling = tiling(args.role, args.n, C::kCluster);
  params.tokens = args.a;
  params.out = args.out;
  params.bias = args.bias;
  params.n = args.n;
  params.k = args.k;
  params.back_every = options.back_every;
  params.activation = args.activation;
  params.interleaved = args.interleaved;
  params.gate_half = args.up_first ? 1 : 0;
  params.num_routed_experts = args.num_experts;
  params.marks = args.marks;
  const Launch<C, kMarked> launch(options.num_ctas, options.overlap_previous, stream);
  TESSERA_CUDA_CHECK(cudaLaunchKernelEx(&launch.config, launch.kernel, weight_map(args), shared_weight_map(args),
                                        args.role == Role::down ? row_map(args) : CUtensorMap{}, out_map(args),
                                        params));
}

template <class C>
void launch_config(const Args& args, const LaunchOptions& options, cudaStream_t stream) {
  args.marks == nullptr ? launch_kernel<C, false>(args, options, stream)
                        : launch_kernel<C, true>(args, options, stream);
}

template <class Element>
bool pairs_fit() {
  const Launch<Config<Element, true, true, 2>, false> launch(2, false, nullptr);
  int clusters = 0;
  TESSERA_CUDA_CHECK(cudaOccupancyMaxActiveClusters(&clusters, launch.kernel, &launch.config));
  return clusters > 0;
}

template <class Element, int kCluster>
void launch_role(const Args& args, const LaunchOptions& options, cudaStream_t stream) {
  switch (args.role) {
    case Role::gate_up: return launch_config<Config<Element, true, true, kCluster>>(args, options, stream);
    case Role::up_only: return launch_config<Config<Element, true, false, kCluster>>(args, options, stream);
    case Role::down: return launch_config<Config<Element, false, false, kCluster>>(args, options, stream);
  }
}

void validate(const Args& args) {
  if (args.dtype == DType::f32) throw Error("expert GEMM dtype", "f32", "bf16 or f16");
  if (args.k <= 0 || args.k % 8 != 0) throw Error("expert GEMM k", str_cat(args.k), "a positive multiple of 8");
  if (args.n <= 0 || args.n % 8 != 0) throw Error("expert GEMM n", str_cat(args.n), "a positive multiple of 8");
  for (const void* pointer : {args.a, args.weight, static_cast<const void*>(args.out), args.bias, args.shared_weight}) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0)
      throw Error("expert GEMM argument", "a misaligned pointer", "16-byte alignment");
  }
}

}  // namespace

bool clusters_fit(DType dtype, int32_t cluster_size) {
  return cluster_size == 1 || (dtype == DType::bf16 ? pairs_fit<__nv_bfloat16>() : pairs_fit<__half>());
}

void launch(const Args& args, const LaunchOptions& options, cudaStream_t stream) {
  if (args.max_rows == 0) return;
  validate(args);
  LaunchOptions resolved = options;
  if (resolved.num_ctas == 0) {
    int device = 0;
    TESSERA_CUDA_CHECK(cudaGetDevice(&device));
    TESSERA_CUDA_CHECK(cudaDeviceGetAttribute(&resolved.num_ctas, cudaDevAttrMultiProcessorCount, device));
  }
  TESSERA_CHECK(resolved.num_ctas >= resolved.cluster_size, resolved.num_ctas, resolved.cluster_size);
  if (args.dtype == DType::bf16) {
    resolved.cluster_size == 2 ? launch_role<__nv_bfloat16, 2>(args, resolved, stream)
                               : launch_role<__nv_bfloat16, 1>(args, resolved, stream);
  } else {
    resolved.cluster_size == 2 ? launch_role<__half, 2>(args, resolved, stream)
                               : launch_role<__half, 1>(args, resolved, stream);
  }
}

}  // namespace tessera::kernels::expert_gemm
