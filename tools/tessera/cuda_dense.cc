#include "cuda_dense.h"

#if __has_include(<cublasLt.h>)

#include <cublasLt.h>

#include <limits>

#include "shared_library.h"
#include "tessera/core/check.h"

namespace tessera::cli {
namespace {

constexpr int kCandidates = 8;
constexpr int64_t kWarmUpRuns = 2, kTimedRuns = 8;

void require(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw Incomplete(str_cat("cuBLASLt: cannot ", what, ": status ", static_cast<int>(status)));
}

std::string version_text(size_t version) {
  return str_cat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

}  // namespace

struct CublasLt::Library {
  SharedLibrary file{"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
  cublasLtHandle_t handle = nullptr;

  decltype(cublasLtCreate)* create;
  decltype(cublasLtDestroy)* destroy;
  decltype(cublasLtGetVersion)* get_version;
  decltype(cublasLtMatmulDescCreate)* create_desc;
  decltype(cublasLtMatmulDescDestroy)* destroy_desc;
  decltype(cublasLtMatmulDescSetAttribute)* set_desc;
  decltype(cublasLtMatrixLayoutCreate)* create_layout;
  decltype(cublasLtMatrixLayoutDestroy)* destroy_layout;
  decltype(cublasLtMatmulPreferenceCreate)* create_preference;
  decltype(cublasLtMatmulPreferenceDestroy)* destroy_preference;
  decltype(cublasLtMatmulPreferenceSetAttribute)* set_preference;
  decltype(cublasLtMatmulAlgoGetHeuristic)* get_heuristic;
  decltype(cublasLtMatmul)* matmul;

  bool load() {
    return file.load(create, "cublasLtCreate") && file.load(destroy, "cublasLtDestroy") &&
           file.load(get_version, "cublasLtGetVersion") && file.load(create_desc, "cublasLtMatmulDescCreate") &&
           file.load(destroy_desc, "cublasLtMatmulDescDestroy") &&
           file.load(set_desc, "cublasLtMatmulDescSetAttribute") &&
           file.load(create_layout, "cublasLtMatrixLayoutCreate") &&
           file.load(destroy_layout, "cublasLtMatrixLayoutDestroy") &&
           file.load(create_preference, "cublasLtMatmulPreferenceCreate") &&
           file.load(destroy_preference, "cublasLtMatmulPreferenceDestroy") &&
           file.load(set_preference, "cublasLtMatmulPreferenceSetAttribute") &&
           file.load(get_heuristic, "cublasLtMatmulAlgoGetHeuristic") && file.load(matmul, "cublasLtMatmul");
  }
};

CublasLt::CublasLt() : library_(std::make_unique<Library>()) {
  if (!library_->file.is_open()) {
    description_ = "none of " + library_->file.name() + " found (LD_LIBRARY_PATH): no ratio to dense products";
  } else if (!library_->load()) {
    description_ = library_->file.name() + " lacks functions that are needed: no ratio to dense products";
  } else if (library_->create(&library_->handle) != CUBLAS_STATUS_SUCCESS) {
    library_->handle = nullptr;
    description_ = library_->file.name() + " does not start on this device: no ratio to dense products";
  } else {
    description_ = library_->file.name() + ", version " + version_text(library_->get_version());
  }
}

CublasLt::~CublasLt() {
  if (library_->handle != nullptr) library_->destroy(library_->handle);
}

bool CublasLt::is_available() const { return library_->handle != nullptr; }

// Row-major D = A B^T is column-major D^T = B A^T: cuBLASLt's first operand is B, transposed, its second A.
struct DenseProduct::State {
  explicit State(const CublasLt::Library& lt) : library(lt) {}
  ~State() {
    if (desc != nullptr) library.destroy_desc(desc);
    for (const cublasLtMatrixLayout_t layout : {a, b, d}) {
      if (layout != nullptr) library.destroy_layout(layout);
    }
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  void describe(DType dtype, DenseOperands operands, int64_t m, int64_t n, int64_t k) {
    const cudaDataType_t result = dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_16F;
    const cudaDataType_t type = operands == DenseOperands::e4m3 ? CUDA_R_8F_E4M3 : result;
    require(library.create_desc(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describe a product");
    const cublasOperation_t transposed = CUBLAS_OP_T, as_it_lies = CUBLAS_OP_N;
    require(library.set_desc(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)), "set an operand");
    require(library.set_desc(desc, CUBLASLT_MATMUL_DESC_TRANSB, &as_it_lies, sizeof(as_it_lies)), "set an operand");
    const auto rows_k = static_cast<uint64_t>(k), rows_n = static_cast<uint64_t>(n);
    require(library.create_layout(&b, type, rows_k, rows_n, k), "describe a matrix");
    require(library.create_layout(&a, type, rows_k, static_cast<uint64_t>(m), k), "describe a matrix");
    require(library.create_layout(&d, result, rows_n, static_cast<uint64_t>(m), n), "describe a matrix");
  }

  int find_candidates(size_t workspace_bytes, cublasLtMatmulHeuristicResult_t* candidates) {
    cublasLtMatmulPreference_t preference = nullptr;
    require(library.create_preference(&preference), "create a preference");
    cublasStatus_t status = library.set_preference(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                   &workspace_bytes, sizeof(workspace_bytes));
    int found = 0;
    if (status == CUBLAS_STATUS_SUCCESS)
      status = library.get_heuristic(library.handle, desc, b, a, d, d, preference, kCandidates, candidates, &found);
    library.destroy_preference(preference);
    require(status, "find a way to compute a product");
    return found;
  }

  const CublasLt::Library& library;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
  cublasLtMatmulAlgo_t algo{};
};

DenseProduct::DenseProduct(const CublasLt& lt, DType dtype, int64_t m, int64_t n, int64_t k,
                           const DeviceMemory& workspace, const void* a, const void* b, void* d, DenseOperands operands)
    : library_(lt.library()), workspace_(workspace), state_(std::make_unique<State>(library_)) {
  state_->describe(dtype, operands, m, n, k);
  cublasLtMatmulHeuristicResult_t candidates[kCandidates];
  const int found = state_->find_candidates(workspace.bytes(), candidates);
  const DeviceTimer timer;
  double best_seconds = std::numeric_limits<double>::infinity();
  cublasLtMatmulAlgo_t best{};
  for (int i = 0; i < found; ++i) {
    state_->algo = candidates[i].algo;
    if (!try_run(a, b, d)) continue;
    timer.seconds_a_run(kWarmUpRuns, [&](int64_t) { try_run(a, b, d); });
    const double seconds = timer.seconds_a_run(kTimedRuns, [&](int64_t) { try_run(a, b, d); });
    if (seconds >= best_seconds) continue;
    best_seconds = seconds;
    best = state_->algo;
  }
  if (best_seconds == std::numeric_limits<double>::infinity())
    throw Incomplete(
        str_cat("cuBLASLt: none of ", found, " ways to multiply [", m, ", ", k, "] by [", n, ", ", k, "] ran"));
  state_->algo = best;
}

DenseProduct::~DenseProduct() = default;

bool DenseProduct::try_run(const void* a, const void* b, void* d) const {
  const float one = 1.0f, zero = 0.0f;
  return library_.matmul(library_.handle, state_->desc, &one, b, state_->b, a, state_->a, &zero, d, state_->d, d,
                         state_->d, &state_->algo, workspace_.get(), workspace_.bytes(),
                         nullptr) == CUBLAS_STATUS_SUCCESS;
}

void DenseProduct::run(const void* a, const void* b, void* d) const {
  if (!try_run(a, b, d)) throw Incomplete("cuBLASLt: a product that ran before fails now");
}

}  // namespace tessera::cli

#else  // a toolkit without cuBLAS: the layer is measured without a baseline

namespace tessera::cli {

struct CublasLt::Library {};
struct DenseProduct::State {};

CublasLt::CublasLt() : description_("this build was made without cublasLt.h: no ratio to dense products") {}
CublasLt::~CublasLt() = default;
bool CublasLt::is_available() const { return false; }

DenseProduct::DenseProduct(const CublasLt& lt, DType, int64_t, int64_t, int64_t, const DeviceMemory& workspace,
                           const void*, const void*, void*, DenseOperands)
    : library_(lt.library()), workspace_(workspace) {
  TESSERA_CHECK(lt.is_available(), lt.description());
}
DenseProduct::~DenseProduct() = default;
void DenseProduct::run(const void*, const void*, void*) const {}

}  // namespace tessera::cli

#endif
