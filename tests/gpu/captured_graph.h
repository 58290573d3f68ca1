// A CUDA graph of what a test enqueues, and its replays.
//
//   CapturedGraph graph(stream, [&] { layer.run(inputs, workspace, bytes, stream); });   // runs nothing
//   graph.replay(stream);
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/core/cuda_check.h"

namespace tessera::testing {

class CapturedGraph {
 public:
  template <class Work>
  CapturedGraph(cudaStream_t stream, const Work& work) {
    cudaGraph_t graph = nullptr;
    TESSERA_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    work();
    TESSERA_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
    TESSERA_CUDA_CHECK(cudaGraphInstantiate(&exec_, graph, 0));
    TESSERA_CUDA_CHECK(cudaGraphDestroy(graph));
  }
  ~CapturedGraph() { cudaGraphExecDestroy(exec_); }
  CapturedGraph(const CapturedGraph&) = delete;
  CapturedGraph& operator=(const CapturedGraph&) = delete;

  /// Enqueues it; does not wait.
  void replay(cudaStream_t stream) const { TESSERA_CUDA_CHECK(cudaGraphLaunch(exec_, stream)); }

 private:
  cudaGraphExec_t exec_ = nullptr;
};

}  // namespace tessera::testing
