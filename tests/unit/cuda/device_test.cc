// The one answer to "can this GPU run the kernels", on devices that are made up and on this machine's.
#include "tessera/cuda/device.h"

#include <gtest/gtest.h>

#include "tessera/moe/layer.h"

namespace tessera::cuda {
namespace {

std::string answer(int major, int minor) { return why_unusable({.index = 0, .major = major, .minor = minor}); }

TEST(Device, OnlyTheCapabilityOfTheCompiledCodeIsUsable) {
  EXPECT_EQ(answer(9, 0), "");
  EXPECT_EQ(answer(8, 0), "compute capability 8.0, expected 9.0 (Hopper)");
  EXPECT_EQ(answer(9, 1), "compute capability 9.1, expected 9.0 (Hopper)");  // sm_90a does not run there
  EXPECT_EQ(answer(10, 0), "compute capability 10.0, expected 9.0 (Hopper)");
  EXPECT_NE(answer(0, 0), "");  // facts that nobody filled in
}

TEST(Device, AMachineHasDevicesOrAReason) {
  std::string why_none = "left from before";
  const std::vector<DeviceFacts> found = devices(why_none);
  EXPECT_EQ(found.empty(), !why_none.empty()) << why_none;
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(found[i].index, static_cast<int>(i));
    EXPECT_NE(found[i].name, "");
    EXPECT_GT(found[i].num_sms, 0);
    EXPECT_GT(found[i].shared_memory_bytes, 0u);
    EXPECT_GT(found[i].l2_bytes, 0u);
    EXPECT_GT(found[i].memory_bytes, found[i].l2_bytes);
  }
  const std::string why_current = why_current_unusable();
  if (found.empty()) {
    EXPECT_EQ(why_current, why_none);
  } else {
    EXPECT_EQ(why_current, why_unusable(found[0]));  // a thread starts on device 0
  }
}

TEST(Device, TheLayerGivesTheSameAnswer) {
  EXPECT_EQ(moe::device_available(moe::Device::cuda), why_current_unusable().empty());
}

}  // namespace
}  // namespace tessera::cuda
