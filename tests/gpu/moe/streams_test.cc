// Streams, graphs and the workspace (rows F and G of the project's bug table): what runs beside, before and after a
// layer must not change its bits.
#include <memory>

#include "cuda/core/stream.h"
#include "gpu/captured_graph.h"
#include "gpu/moe/gpu_fixture.h"

namespace tessera::testing {
namespace {

/// A stream that neither waits for the default stream nor holds it up, where CUDA's own type is wanted.
struct Stream : cuda::Stream {
  operator cudaStream_t() const { return get(); }
};

/// A layer of its own, its memory, and the bits that a run of it alone gives.
struct Tenant {
  explicit Tenant(const LayerCase& c, uint64_t seed = 1, const moe::LaunchPolicy& policy = {})
      : run(c, seed),
        layer(run.config(), run.weights(), policy),
        workspace(layer.workspace_bytes(c.tokens)),
        expected(run.run(policy)) {
    EXPECT_EQ(run.judge(expected, run.reference()), "") << c;
  }
  void enqueue(cudaStream_t stream) { layer.run(run.inputs(), workspace.data(), workspace.bytes(), stream); }
  std::vector<uint16_t> bits() { return run.out().download<uint16_t>(expected.size()); }

  LayerRun run;
  moe::CudaLayer layer;
  GuardedBuffer workspace;
  std::vector<uint16_t> expected;
};

/// The layer on a workspace that may be shared.
struct Graph : CapturedGraph {
  Graph(cudaStream_t stream, Tenant& tenant, void* workspace, size_t workspace_bytes)
      : CapturedGraph(stream, [&] { tenant.layer.run(tenant.run.inputs(), workspace, workspace_bytes, stream); }) {}
};

// G1, F1, I8: two layers on two streams, with copies on a third that shift their timing.
TEST(MoeStreams, G1_TwoLayersOnTwoStreams) {
  Tenant first({512, 256, 16, 4, 700, "zipf"}, 1);
  Tenant second({320, 512, 40, 2, 300, "random", DType::f16}, 2, {batching::TaskOrder::natural, 40, 1, 3});
  Stream streams[3];
  GuardedBuffer noise(size_t{64} << 20);
  std::mt19937 rng(3);
  for (int round = 0; round < 40; ++round) {
    first.run.out().poison();
    second.run.out().poison();
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());  // the streams do not wait for the null stream
    for (int n = 0; n < 5; ++n) {
      if (rng() % 2 == 0)
        TESSERA_CUDA_CHECK(cudaMemsetAsync(noise.data(), n, noise.bytes() >> (rng() % 10), streams[2]));
      Tenant& next = rng() % 2 == 0 ? first : second;
      next.enqueue(&next == &first ? streams[0] : streams[1]);
    }
    first.enqueue(streams[0]);
    second.enqueue(streams[1]);
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    ASSERT_EQ(first.bits(), first.expected) << round;
    ASSERT_EQ(second.bits(), second.expected) << round;
  }
  EXPECT_TRUE(first.workspace.guards_intact() && second.workspace.guards_intact() && noise.guards_intact());
}

// G2: graphs of several sizes that share one workspace, replayed in any order on one stream.
TEST(MoeStreams, G2_GraphsThatShareAWorkspace) {
  Stream stream;
  std::vector<std::unique_ptr<Tenant>> tenants;
  std::vector<std::unique_ptr<Graph>> graphs;
  size_t bytes = 0;
  for (const int tokens : {1, 3, 64, 256, 700}) {
    const char* routing = tokens == 64 ? "worst" : "random";
    tenants.push_back(std::make_unique<Tenant>(LayerCase{256, 256, 16, 2, tokens, routing}));
    bytes = std::max(bytes, tenants.back()->workspace.bytes());
  }
  GuardedBuffer workspace(bytes);
  for (auto& tenant : tenants) graphs.push_back(std::make_unique<Graph>(stream, *tenant, workspace.data(), bytes));
  std::mt19937 rng(9);
  for (int round = 0; round < 30; ++round) {
    for (auto& tenant : tenants) tenant->run.out().poison();
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    for (int n = 0; n < 20; ++n) {
      const size_t next = rng() % (graphs.size() + 1);
      if (next < graphs.size()) {
        graphs[next]->replay(stream);
      } else {  // an eager run between replays
        Tenant& tenant = *tenants[rng() % tenants.size()];
        tenant.layer.run(tenant.run.inputs(), workspace.data(), workspace.bytes(), stream);
      }
    }
    for (auto& graph : graphs) graph->replay(stream);
    TESSERA_CUDA_CHECK(cudaStreamSynchronize(stream));
    for (auto& tenant : tenants) ASSERT_EQ(tenant->bits(), tenant->expected) << round;
  }
  EXPECT_TRUE(workspace.guards_intact());
}

// G3, G5: a run allocates nothing (capture would refuse it), and what others free and take between capture and replay
// is never touched.
TEST(MoeStreams, G3_CanariesBetweenReplays) {
  Stream stream;
  auto before_capture = std::make_unique<GuardedBuffer>(size_t{8} << 20);
  Tenant tenant({256, 256, 16, 2, 300, "random"});
  Graph graph(stream, tenant, tenant.workspace.data(), tenant.workspace.bytes());
  tenant.enqueue(stream);
  TESSERA_CUDA_CHECK(cudaStreamSynchronize(stream));
  before_capture.reset();
  for (int round = 0; round < 10; ++round) {
    std::vector<std::unique_ptr<GuardedBuffer>> canaries;
    for (const size_t bytes : {size_t{512}, size_t{1} << 16, size_t{1} << 20, size_t{8} << 20})
      canaries.push_back(std::make_unique<GuardedBuffer>(bytes));
    tenant.run.out().poison();
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    graph.replay(stream);
    TESSERA_CUDA_CHECK(cudaStreamSynchronize(stream));
    ASSERT_EQ(tenant.bits(), tenant.expected) << round;
    for (const auto& canary : canaries) {
      const auto bytes = canary->download<uint8_t>(canary->bytes());
      ASSERT_TRUE(canary->guards_intact());
      ASSERT_TRUE(std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == GuardedBuffer::kPoisonByte; }));
    }
  }
}

// G4: many configurations in one process; the first must have the same bits at the end, and nobody's canary may die.
TEST(MoeStreams, G4_FuzzInOneProcess) {
  Tenant first({192, 320, 12, 3, 200, "random"});
  GuardedBuffer canary(size_t{4} << 20);
  std::mt19937 rng(21);
  const auto between = [&rng](int low, int high) { return low + static_cast<int>(rng() % (high - low + 1u)); };
  const char* const routings[] = {"balanced", "best", "worst", "random", "foreign"};
  for (int n = 0; n < 60; ++n) {
    LayerCase c{};
    c.hidden = 8 * between(8, 60);
    c.intermediate = 8 * between(32, 80);
    c.experts = between(1, 40);
    c.top_k = std::min(c.experts, between(1, 6));
    c.tokens = between(1, 400);
    c.routing = routings[rng() % std::size(routings)];
    c.dtype = rng() % 2 == 0 ? DType::bf16 : DType::f16;
    c.gated = rng() % 4 != 0;
    c.bias = rng() % 2 == 0;
    c.ids_are_64_bit = rng() % 2 == 0;
    LayerRun run(c, rng());
    const auto order = rng() % 2 == 0 ? batching::TaskOrder::heavy_first : batching::TaskOrder::interleaved;
    const auto got = run.run({order, between(1, 200), between(1, 2), between(0, 4)});
    ASSERT_EQ(run.judge(got, run.reference()), "") << n << ": " << c;
  }
  first.run.out().poison();
  first.enqueue(nullptr);
  EXPECT_EQ(first.bits(), first.expected);
  const auto bytes = canary.download<uint8_t>(canary.bytes());
  EXPECT_TRUE(std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == GuardedBuffer::kPoisonByte; }));
  EXPECT_TRUE(canary.guards_intact());
}

// F2: a store that is rarely overtaken shows only in many launches. Each run has an output of its own.
TEST(MoeStreams, F2_TenThousandLaunchesSameBits) {
  constexpr int kBatch = 1000;
  Tenant tenant({128, 128, 12, 2, 100, "worst"});
  const size_t count = tenant.expected.size();
  GuardedBuffer outputs(kBatch * count * sizeof(uint16_t));
  for (int batch = 0; batch < 10; ++batch) {
    outputs.poison();
    for (int n = 0; n < kBatch; ++n) {
      auto inputs = tenant.run.inputs();
      inputs.out = static_cast<uint16_t*>(outputs.data()) + static_cast<size_t>(n) * count;
      tenant.layer.run(inputs, tenant.workspace.data(), tenant.workspace.bytes(), nullptr);
    }
    const auto all = outputs.download<uint16_t>(kBatch * count);
    for (size_t n = 0; n < kBatch; ++n) {
      const auto begin = all.begin() + static_cast<ptrdiff_t>(n * count);
      ASSERT_TRUE(std::equal(tenant.expected.begin(), tenant.expected.end(), begin)) << batch << " " << n;
    }
  }
  EXPECT_TRUE(outputs.guards_intact());
}

}  // namespace
}  // namespace tessera::testing
