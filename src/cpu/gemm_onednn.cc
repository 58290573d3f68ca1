// The only file that knows oneDNN. It builds with the 2.6 API (a matmul has a descriptor of its own) and the 3.x API
// (the primitive descriptor is made directly).
#include "cpu/gemm_kernel.h"

#ifdef TESSERA_HAVE_ONEDNN

#include <omp.h>

#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>

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

dnnl::matmul::primitive_desc make_description(const GemmSpec& spec) {
  const auto operand = spec.operand == DType::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  const memory::desc a({spec.rows, spec.in_features}, operand, memory::format_tag::ab);
  const memory::desc weights({spec.in_features, spec.out_features}, operand, memory::format_tag::any);
  const memory::desc c({spec.rows, spec.out_features}, memory::data_type::f32, memory::format_tag::ab);
  dnnl::primitive_attr attributes;
  // The library's own scratch memory belongs to the thread that made the product, not to the one that runs it.
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (spec.accumulate) {
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
    // oneDNN takes its sources through pointers to non-const and does not write to them.
    const memory source(description_.src_desc(), cpu_engine(), const_cast<void*>(a));
    const memory destination(description_.dst_desc(), cpu_engine(), c);
    const memory scratchpad(description_.scratchpad_desc(), cpu_engine(), scratch);
    product_.execute(thread_stream(), {{DNNL_ARG_SRC, source},
                                       {DNNL_ARG_WEIGHTS, packed_},
                                       {DNNL_ARG_DST, destination},
                                       {DNNL_ARG_SCRATCHPAD, scratchpad}});
    thread_stream().wait();
  }

 private:
  dnnl::matmul::primitive_desc description_;
  dnnl::matmul product_;
  PageBuffer storage_;
  memory packed_;  // in storage_
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
bool onednn_available() { return false; }
bool onednn_supports_bf16() { return false; }
std::string onednn_name() { return "no oneDNN"; }

}  // namespace tessera::cpu

#endif
