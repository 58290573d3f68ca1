// Apart from the rest of LayerData: a program that runs no CPU layer does not link it.
#include "moe/layer_data.h"
#include "tessera/core/check.h"
#include "tessera/moe/cpu_layer.h"

namespace tessera::testing {

std::vector<std::byte> LayerData::run(const moe::CpuLayer& layer) const {
  GuardedBytes workspace(layer.workspace_bytes(case_.tokens));
  GuardedBytes out(out_bytes());
  layer.run(inputs(out.data()), workspace.data(), workspace.size());
  TESSERA_CHECK(out.guards_intact() && workspace.guards_intact(), out.guards_intact(), workspace.guards_intact());
  return {out.data(), out.data() + out.size()};
}

std::vector<std::byte> LayerData::run(int num_threads) const {
  return run(moe::CpuLayer(config(), weights(), num_threads));
}

}  // namespace tessera::testing
