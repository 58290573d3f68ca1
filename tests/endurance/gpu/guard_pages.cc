// Every array of a layer at the end, or at the beginning, of memory behind, or before, which nothing is mapped: one
// byte too far ends the run with an illegal address. The bits are those of ordinary memory.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstring>

#include "endurance/gpu/repeated_layer.h"
#include "endurance/gpu/rows.h"
#include "endurance/random_case.h"
#include "moe/battery.h"

namespace tessera::testing {

namespace {

constexpr size_t kVectorBytes = 16;

/// A function of the driver, which nothing links.
template <class Function>
Function driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result{};
  TESSERA_CUDA_CHECK(cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &result));
  TESSERA_CHECK(function != nullptr && result == cudaDriverEntryPointSuccess, name);
  return reinterpret_cast<Function>(function);
}

void check(CUresult result, const char* what) { TESSERA_CHECK(result == CUDA_SUCCESS, what, static_cast<int>(result)); }

struct Driver {
  decltype(&cuMemGetAllocationGranularity) granularity =
      driver_function<decltype(&cuMemGetAllocationGranularity)>("cuMemGetAllocationGranularity");
  decltype(&cuMemAddressReserve) reserve = driver_function<decltype(&cuMemAddressReserve)>("cuMemAddressReserve");
  decltype(&cuMemAddressFree) unreserve = driver_function<decltype(&cuMemAddressFree)>("cuMemAddressFree");
  decltype(&cuMemCreate) create = driver_function<decltype(&cuMemCreate)>("cuMemCreate");
  decltype(&cuMemRelease) release = driver_function<decltype(&cuMemRelease)>("cuMemRelease");
  decltype(&cuMemMap) map = driver_function<decltype(&cuMemMap)>("cuMemMap");
  decltype(&cuMemUnmap) unmap = driver_function<decltype(&cuMemUnmap)>("cuMemUnmap");
  decltype(&cuMemSetAccess) set_access = driver_function<decltype(&cuMemSetAccess)>("cuMemSetAccess");
};

const Driver& driver() {
  static const Driver functions;
  return functions;
}

enum class Place { end, begin };

/// Device memory with unmapped addresses on both sides; the array touches those at its end, or at its beginning.
class GuardedPages {
 public:
  GuardedPages(size_t bytes, Place place) : bytes_(bytes) {
    CUmemAllocationProp properties{};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0};
    size_t granularity = 0;
    check(driver().granularity(&granularity, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM), "granularity");
    mapped_bytes_ = (std::max<size_t>(bytes, 1) + granularity - 1) / granularity * granularity;
    reserved_bytes_ = mapped_bytes_ + 2 * granularity;
    check(driver().reserve(&reserved_, reserved_bytes_, 0, 0, 0), "reserve");
    check(driver().create(&memory_, mapped_bytes_, &properties, 0), "create");
    mapped_ = reserved_ + granularity;
    check(driver().map(mapped_, mapped_bytes_, 0, memory_, 0), "map");
    CUmemAccessDesc access{};
    access.location = properties.location;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    check(driver().set_access(mapped_, mapped_bytes_, &access, 1), "access");
    const size_t room =
        (bytes + kVectorBytes - 1) / kVectorBytes * kVectorBytes;  // what the layer asks to be aligned to
    data_ = reinterpret_cast<void*>(mapped_ + (place == Place::end ? mapped_bytes_ - room : 0));
    TESSERA_CUDA_CHECK(cudaMemset(reinterpret_cast<void*>(mapped_), GuardedBuffer::kPoisonByte, mapped_bytes_));
  }
  ~GuardedPages() {
    cudaDeviceSynchronize();
    driver().unmap(mapped_, mapped_bytes_);
    driver().release(memory_);
    driver().unreserve(reserved_, reserved_bytes_);
  }
  GuardedPages(const GuardedPages&) = delete;
  GuardedPages& operator=(const GuardedPages&) = delete;

  void* data() const { return data_; }
  void fill(const void* from) {
    if (bytes_ != 0) TESSERA_CUDA_CHECK(cudaMemcpy(data_, from, bytes_, cudaMemcpyHostToDevice));
  }

 private:
  size_t bytes_, mapped_bytes_ = 0, reserved_bytes_ = 0;
  CUdeviceptr reserved_ = 0, mapped_ = 0;
  CUmemGenericAllocationHandle memory_ = 0;
  void* data_ = nullptr;
};

/// The layer of host data with each array in pages of its own.
class PagedRun {
 public:
  PagedRun(const LayerData& data, Place place) : data_(data), place_(place) {}

  std::vector<uint16_t> run() {
    const LayerCase& c = data_.layer_case();
    const auto copy = [&](const GuardedBytes& from) -> const void* { return placed(from.data(), from.size()); };
    const auto map = data_.expert_map();
    const moe::LayerWeights weights = weights_of(
        c, {copy(data_.gate_up()), copy(data_.down()), copy(data_.gate_up_bias()), copy(data_.down_bias()),
            copy(data_.shared_gate_up()), copy(data_.shared_down()),
            static_cast<const int32_t*>(placed(map.data(), map.size() * sizeof(int32_t))), copy(data_.gate_up_scale()),
            copy(data_.down_scale()), copy(data_.shared_gate_up_scale()), copy(data_.shared_down_scale())});
    moe::LayerInputs inputs = data_.inputs();
    const auto slots = static_cast<size_t>(c.tokens) * static_cast<size_t>(c.top_k);
    inputs.x = copy(data_.x());
    inputs.topk_ids = placed(inputs.topk_ids, slots * (c.ids_are_64_bit ? sizeof(int64_t) : sizeof(int32_t)));
    inputs.topk_weights = placed(inputs.topk_weights, slots * dtype_size(c.topk_weights_dtype));
    if (inputs.shared_weight != nullptr) {
      inputs.shared_weight =
          static_cast<const float*>(placed(inputs.shared_weight, static_cast<size_t>(c.tokens) * sizeof(float)));
    }
    GuardedPages out(data_.out_bytes(), place_);
    inputs.out = out.data();
    const moe::CudaLayer layer(data_.config(), weights);
    const size_t workspace_bytes = layer.workspace_bytes(c.tokens);
    GuardedPages workspace(workspace_bytes, place_);
    layer.run(inputs, workspace.data(), workspace_bytes, nullptr);
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    std::vector<uint16_t> bits(data_.out_bytes() / sizeof(uint16_t));
    TESSERA_CUDA_CHECK(cudaMemcpy(bits.data(), out.data(), data_.out_bytes(), cudaMemcpyDeviceToHost));
    return bits;
  }
  size_t num_arrays() const { return pages_.size() + 2; }

 private:
  const void* placed(const void* from, size_t bytes) {
    pages_.push_back(std::make_unique<GuardedPages>(bytes, place_));
    pages_.back()->fill(from);
    return pages_.back()->data();
  }

  const LayerData& data_;
  Place place_;
  std::vector<std::unique_ptr<GuardedPages>> pages_;
};

}  // namespace

Row guard_pages(const GpuEndurance&) {
  Row problems = Row::array();
  std::vector<LayerCase> cases = repeated_cases();
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    const auto format = seed % 3 == 0 ? moe::WeightFormat::fp8_block : moe::WeightFormat::dense;
    const LayerCase c = random_case(300 + seed, format, seed % 2 == 0 ? DType::bf16 : DType::f16);
    if (c.tokens > 0) cases.push_back(c);
  }
  size_t num_layers = 0, num_arrays = 0;
  for (const LayerCase& c : cases) {
    const LayerData data(c);
    const std::vector<uint16_t> expected = LayerRun(data).run();
    for (const Place place : {Place::end, Place::begin}) {
      PagedRun run(data, place);
      const bool is_equal = run.run() == expected;
      ++num_layers;
      num_arrays += run.num_arrays();
      std::ostringstream name;
      name << c;
      if (!is_equal) problems.push_back(name.str() + ": other bits in guarded pages");
    }
  }
  return {{"ok", problems.empty()}, {"layers", num_layers}, {"arrays", num_arrays}, {"problems", problems}};
}

}  // namespace tessera::testing
