// The only file that knows oneDNN. It builds with the 2.6 API (a matmul has a descriptor of its own) and the 3.x API
// (the primitive descriptor is made directly).
#include "cpu/gemm_kernel.h"

#ifdef TESSERA_HAVE_ONEDNN

#include <omp.h>

#include <algorithm>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>
#include <vector>

#include "cpu/page_buffer.h"
#include "tessera/core/check.h"

namespace tessera::cpu {
namespace {

using dnnl::memory;

// oneDNN splits a product over OpenMP's threads, by the number in force both when a product is made and when it runs.
// Here one product is one thread's work: parallelism is over tiles.
class OneOpenMpThread {
 public:
  OneOpenMpThread() : before_(omp_get_max_threads()) {
    if (before_ != 1) omp_set_num_threads(1);
  }
  ~OneOpenMpThread() {
    if (before_ != 1) omp_set_num_threads(before_);
  }
  OneOpenMpThread(const OneOpenMpThread&) = delete;
  OneOpenMpThread& operator=(const OneOpenMpThread&) = delete;

 private:
  int before_;
};

const dnnl::engine& cpu_engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

dnnl::stream& thread_stream() {
  thread_local dnnl::stream stream(cpu_engine());
  return stream;
}

dnnl::matmul::primitive_desc describe(const memory::desc& a, const memory::desc& weights, const memory::desc& c,
                                      bool accumulate) {
  dnnl::primitive_attr attributes;
  // The library's own scratch memory belongs to the thread that made the product, not to the one that runs it.
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
#if DNNL_VERSION_MAJOR >= 3
  return dnnl::matmul::primitive_desc(cpu_engine(), a, weights, c, attributes);
#else
  return dnnl::matmul::primitive_desc(dnnl::matmul::desc(a, weights, c), attributes, cpu_engine());
#endif
}

memory::data_type data_type_of(DType operand) {
  return operand == DType::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
}

dnnl::matmul::primitive_desc make_description(const GemmSpec& spec) {
  const memory::data_type operand = data_type_of(spec.operand);
  return describe({{spec.rows, spec.in_features}, operand, memory::format_tag::ab},
                  {{spec.in_features, spec.out_features}, operand, memory::format_tag::any},
                  {{spec.rows, spec.out_features}, memory::data_type::f32, memory::format_tag::ab}, spec.accumulate);
}

// c = a x weights^T, or c += ..., as described.
void execute(const dnnl::matmul& product, const dnnl::matmul::primitive_desc& description, const void* a,
             const memory& weights, float* c, std::byte* scratch) {
  // oneDNN takes its sources through pointers to non-const and does not write to them.
  const memory source(description.src_desc(), cpu_engine(), const_cast<void*>(a));
  const memory destination(description.dst_desc(), cpu_engine(), c);
  const memory scratchpad(description.scratchpad_desc(), cpu_engine(), scratch);
  product.execute(thread_stream(), {{DNNL_ARG_SRC, source},
                                    {DNNL_ARG_WEIGHTS, weights},
                                    {DNNL_ARG_DST, destination},
                                    {DNNL_ARG_SCRATCHPAD, scratchpad}});
  thread_stream().wait();
}

class OneDnnGemm final : public GemmKernel {
 public:
  OneDnnGemm(const GemmSpec& spec, const WeightView& weights) {
    const OneOpenMpThread one_thread;
    description_ = make_description(spec);
    product_ = dnnl::matmul(description_);
    storage_ = PageBuffer(description_.weights_desc().get_size());
    packed_ = memory(description_.weights_desc(), cpu_engine(), storage_.data());
    Buffer<float> dense = dense_weights(spec, weights);
    memory source({{spec.in_features, spec.out_features}, memory::data_type::f32, memory::format_tag::ab}, cpu_engine(),
                  dense.data());
    dnnl::reorder(source, packed_).execute(thread_stream(), source, packed_);
    thread_stream().wait();
  }

  size_t scratch_bytes() const override { return description_.scratchpad_desc().get_size(); }
  size_t packed_bytes() const override { return storage_.size(); }

  void run(const void* a, float* c, std::byte* scratch) const override {
    const OneOpenMpThread one_thread;
    execute(product_, description_, a, packed_, c, scratch);
  }

 private:
  dnnl::matmul::primitive_desc description_;
  dnnl::matmul product_;
  PageBuffer storage_;
  memory packed_;  // in storage_
};

// The weights are transposed where they lie; oneDNN rearranges 64 columns of them at a time in its scratch memory. Long
// sums are cut into parts of kPart products by us: oneDNN with AMX would cut them too, but differently for each height.
class OneDnnPlainGemm final : public PlainGemmKernel {
 public:
  OneDnnPlainGemm(const PlainGemmSpec& spec, DType operand, const std::vector<int64_t>& heights)
      : spec_(spec), operand_(operand) {
    const OneOpenMpThread one_thread;
    for (const int64_t height : heights) {
      for (int64_t begin = 0; begin < spec.in_features; begin += kPart) {
        const int64_t depth = std::min(kPart, spec.in_features - begin);
        if (find(height, depth, begin > 0) == nullptr) products_.push_back(make_product(height, depth, begin > 0));
      }
    }
  }

  size_t scratch_bytes() const override {
    size_t bytes = 0;
    for (const Product& product : products_) bytes = std::max(bytes, product.description.scratchpad_desc().get_size());
    return bytes;
  }

  void run(int64_t height, const void* a, const void* weights, float* c, std::byte* scratch) const override {
    const OneOpenMpThread one_thread;
    for (int64_t begin = 0; begin < spec_.in_features; begin += kPart) {
      const Product* product = find(height, std::min(kPart, spec_.in_features - begin), begin > 0);
      TESSERA_CHECK(product != nullptr, height);
      const size_t skipped = static_cast<size_t>(begin) * dtype_size(operand_);
      auto* part = const_cast<std::byte*>(static_cast<const std::byte*>(weights)) + skipped;  // read, see execute
      execute(product->multiply, product->description, static_cast<const std::byte*>(a) + skipped,
              memory(product->description.weights_desc(), cpu_engine(), part), c, scratch);
    }
  }

 private:
  // With oneDNN 2.6 and AMX three heights of four still agree for one part of this length and all of them beyond it;
  // parts of 1024 agree always, but adding to what C holds costs a fifth of the speed (128 x 2048, Sapphire Rapids).
  static constexpr int64_t kPart = 2048;

  struct Product {
    int64_t height;
    int64_t depth;
    bool accumulate;
    dnnl::matmul::primitive_desc description;
    dnnl::matmul multiply;
  };

  Product make_product(int64_t height, int64_t depth, bool accumulate) const {
    const memory::data_type operand = data_type_of(operand_);
    const auto description =
        describe({{height, depth}, operand, memory::dims{spec_.in_features, 1}},
                 {{depth, spec_.out_features}, operand, memory::dims{1, spec_.in_features}},
                 {{height, spec_.out_features}, memory::data_type::f32, memory::format_tag::ab}, accumulate);
    return {height, depth, accumulate, description, dnnl::matmul(description)};
  }

  const Product* find(int64_t height, int64_t depth, bool accumulate) const {
    const auto product = std::find_if(products_.begin(), products_.end(), [&](const Product& each) {
      return each.height == height && each.depth == depth && each.accumulate == accumulate;
    });
    return product == products_.end() ? nullptr : &*product;
  }

  PlainGemmSpec spec_;
  DType operand_;
  std::vector<Product> products_;
};

// Instruction sets are bit sets: one that contains another has all of its bits.
bool runs(dnnl::cpu_isa wanted) {
  const auto bits = [](dnnl::cpu_isa isa) { return static_cast<unsigned>(isa); };
  return (bits(dnnl::get_effective_cpu_isa()) & bits(wanted)) == bits(wanted);
}

}  // namespace

std::unique_ptr<const GemmKernel> make_onednn_gemm(const GemmSpec& spec, const WeightView& weights) {
  return std::make_unique<OneDnnGemm>(spec, weights);
}

std::unique_ptr<const PlainGemmKernel> make_onednn_plain_gemm(const PlainGemmSpec& spec, DType operand,
                                                              const std::vector<int64_t>& heights) {
  return std::make_unique<OneDnnPlainGemm>(spec, operand, heights);
}

bool onednn_available() { return true; }

bool onednn_supports_bf16() { return runs(dnnl::cpu_isa::avx512_core_bf16); }

std::string onednn_name() {
  const dnnl_version_t* version = dnnl_version();
  const char* units = runs(dnnl::cpu_isa::avx512_core_amx)    ? "AMX"
                      : runs(dnnl::cpu_isa::avx512_core_bf16) ? "AVX512-BF16"
                      : runs(dnnl::cpu_isa::avx512_core)      ? "AVX-512"
                      : runs(dnnl::cpu_isa::avx2)             ? "AVX2"
                                                              : "no vector unit wider than SSE4.1";
  return str_cat("oneDNN ", version->major, ".", version->minor, ".", version->patch, " (", units, ")");
}

}  // namespace tessera::cpu

#else

namespace tessera::cpu {

std::unique_ptr<const GemmKernel> make_onednn_gemm(const GemmSpec&, const WeightView&) { return nullptr; }
std::unique_ptr<const PlainGemmKernel> make_onednn_plain_gemm(const PlainGemmSpec&, DType,
                                                              const std::vector<int64_t>&) {
  return nullptr;
}
bool onednn_available() { return false; }
bool onednn_supports_bf16() { return false; }
std::string onednn_name() { return "no oneDNN"; }

}  // namespace tessera::cpu

#endif
