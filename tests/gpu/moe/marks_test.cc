// Marks: every kernel that runs leaves them, in an order that can be; bits do not depend on them; and the probes that a
// measurement is judged against.
#include "cuda/core/marks.h"

#include "cuda/kernels/probe/launch.h"
#include "gpu/moe/gpu_fixture.h"
#include "moe/model/layer_timeline.h"
#include "tessera/core/error.h"

namespace tessera::testing {
namespace {

/// Cleared marks in device memory.
class DeviceMarks {
 public:
  DeviceMarks() : memory_(sizeof(cuda::LayerMarks)) { clear(); }
  void clear() { memory_.upload(std::vector<cuda::LayerMarks>(1)); }
  cuda::LayerMarks read() const { return memory_.download<cuda::LayerMarks>(1).front(); }
  cuda::LayerMarks* get() { return static_cast<cuda::LayerMarks*>(memory_.data()); }
  bool guards_intact() const { return memory_.guards_intact(); }

 private:
  GuardedBuffer memory_;
};

void expect_order(const cuda::LayerMarks& run, bool counts, const LayerCase& c) {
  EXPECT_EQ(run.count == cuda::KernelMarks{}, !counts) << c;
  const cuda::KernelMarks* before = nullptr;
  for (const cuda::KernelMarks* kernel : {&run.count, &run.place, &run.gate_up, &run.down, &run.combine}) {
    if (kernel == &run.count && !counts) continue;
    if (before != nullptr) {
      EXPECT_GE(kernel->work.first, before->end.last) << c;  // released only when the one before has ended
      EXPECT_GE(kernel->begin.first, before->begin.first) << c;
    }
    before = kernel;
  }
  const moe::LayerTimeline timeline = moe::timeline_of(std::span(&run, 1));  // refuses what contradicts itself
  EXPECT_EQ(timeline.kernels.size(), counts ? 5u : 4u) << c;
  EXPECT_GT(timeline.seconds(), 1e-6) << c;
  EXPECT_LT(timeline.seconds(), 1.0) << c;
}

TEST(MoeMarks, EveryKernelIsMarkedAndBitsStay) {
  LayerCase plain{256, 256, 8, 2, 300, "zipf"};
  plain.gated = false;
  // 1 and 512 pairs are planned by one CTA, 2000 and 1400 by two kernels; a token alone leaves most CTAs without work.
  for (const LayerCase& c :
       {LayerCase{512, 256, 16, 8, 1, "random"}, LayerCase{256, 256, 8, 2, 256, "balanced"},
        LayerCase{256, 384, 16, 4, 500, "zipf", DType::f16}, LayerCase{320, 256, 40, 2, 700, "worst"}, plain}) {
    LayerRun run(c);
    for (const int32_t cluster_size : {1, 2}) {
      moe::LaunchPolicy policy;
      policy.cluster_size = cluster_size;
      const auto expected = run.run(policy);
      DeviceMarks marks;
      policy.marks = marks.get();
      EXPECT_EQ(run.run(policy), expected) << c << " cluster " << cluster_size;
      EXPECT_TRUE(marks.guards_intact()) << c;
      expect_order(marks.read(), c.tokens * c.top_k > 1024, c);
    }
    EXPECT_EQ(run.judge(run.run(), run.reference()), "") << c;
  }
}

TEST(MoeMarks, AFewCtasMarkTheSame) {
  const LayerCase c{256, 256, 8, 2, 200, "random"};
  LayerRun run(c);
  const auto expected = run.run();
  DeviceMarks marks;
  for (const int32_t num_ctas : {1, 2, 7}) {
    marks.clear();
    moe::LaunchPolicy policy;
    policy.num_ctas = num_ctas;
    policy.marks = marks.get();
    EXPECT_EQ(run.run(policy), expected) << num_ctas;
    expect_order(marks.read(), false, c);
  }
}

TEST(MoeMarks, ReplaysOfAGraphMarkAnew) {
  const LayerCase c{256, 256, 8, 2, 64, "random"};
  LayerRun run(c);
  const auto expected = run.run();
  DeviceMarks marks;
  moe::LaunchPolicy policy;
  policy.marks = marks.get();
  const moe::CudaLayer layer(run.config(), run.weights(), policy);
  GuardedBuffer workspace(layer.workspace_bytes(c.tokens));
  cudaStream_t stream = nullptr;
  TESSERA_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  TESSERA_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  layer.run(run.inputs(), workspace.data(), workspace.bytes(), stream);
  TESSERA_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  TESSERA_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  EXPECT_EQ(marks.read(), cuda::LayerMarks{});  // a capture runs nothing
  uint64_t last_end = 0;
  for (int replay = 0; replay < 5; ++replay) {
    marks.clear();
    run.out().poison();
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    TESSERA_CUDA_CHECK(cudaGraphLaunch(exec, stream));
    TESSERA_CUDA_CHECK(cudaStreamSynchronize(stream));
    const cuda::LayerMarks replayed = marks.read();
    expect_order(replayed, false, c);
    EXPECT_GT(replayed.place.begin.first, last_end) << replay;
    last_end = replayed.combine.end.last;
    EXPECT_EQ(run.out().download<uint16_t>(expected.size()), expected) << replay;
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  EXPECT_TRUE(workspace.guards_intact() && marks.guards_intact());
}

TEST(MoeMarks, ALayerThatIsNotMarkedLeavesThemAlone) {
  const LayerCase c{256, 256, 8, 2, 64, "random"};
  LayerRun run(c);
  DeviceMarks marks;
  run.run();
  EXPECT_EQ(marks.read(), cuda::LayerMarks{});
  moe::LaunchPolicy policy;
  policy.marks = marks.get();
  run.run(policy);
  const cuda::LayerMarks marked = marks.read();
  EXPECT_NE(marked, cuda::LayerMarks{});
  run.run();  // another layer object on the same device
  EXPECT_EQ(marks.read(), marked);
}

TEST(MoeMarks, OneStepMarksOneKernel) {
  const LayerCase c{256, 256, 8, 2, 64, "random"};
  LayerRun run(c);
  DeviceMarks marks;
  moe::LaunchPolicy policy;
  policy.marks = marks.get();
  const moe::CudaLayer layer(run.config(), run.weights(), policy);
  GuardedBuffer workspace(layer.workspace_bytes(c.tokens));
  layer.run_step(moe::CudaLayer::Step::plan, run.inputs(), workspace.data(), workspace.bytes(), nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  const cuda::LayerMarks after = marks.read();
  EXPECT_NE(after.place, cuda::KernelMarks{});
  for (const cuda::KernelMarks* kernel : {&after.count, &after.gate_up, &after.down, &after.combine})
    EXPECT_EQ(*kernel, cuda::KernelMarks{});
}

// A word that stands out is found wherever it lies, in the last chunk too: everything is read.
TEST(Probe, AStreamingReadReadsEverything) {
  constexpr uint32_t kWord = 0xC0FFEE01;
  GuardedBuffer found(sizeof(uint32_t));
  for (const size_t chunks : {size_t{1}, size_t{2048}, size_t{2049}, size_t{100'003}}) {
    GuardedBuffer data(16 * chunks);
    std::vector<uint32_t> words(4 * chunks, 0);
    for (const size_t place : {size_t{0}, words.size() / 2, words.size() - 1}) {
      words[place] = kWord;
      data.upload(words);
      words[place] = 0;
      for (const uint32_t key : {kWord, kWord + 1}) {
        found.upload(std::vector<uint32_t>{0});
        kernels::probe::read({data.data(), data.bytes(), key, static_cast<uint32_t*>(found.data())}, nullptr);
        TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
        EXPECT_EQ(found.download<uint32_t>(1).front(), key == kWord ? 1u : 0u) << chunks << " at " << place;
      }
    }
  }
  EXPECT_THROW(kernels::probe::read({found.data(), 8, 0, static_cast<uint32_t*>(found.data())}, nullptr), Error);
}

TEST(Probe, TheTimerAdvances) {
  GuardedBuffer step(sizeof(uint64_t));
  kernels::probe::timer_step(static_cast<uint64_t*>(step.data()), nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  const uint64_t nanoseconds = step.download<uint64_t>(1).front();
  EXPECT_GE(nanoseconds, 1u);
  EXPECT_LE(nanoseconds, 2'000u);
  EXPECT_TRUE(step.guards_intact());
}

}  // namespace
}  // namespace tessera::testing
