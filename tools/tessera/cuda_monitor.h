// Clock and power of a GPU while something runs on it, by NVML, which is found at run time.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "moe_bench.h"

namespace tessera::cli {

class DeviceMonitor {
 public:
  /// `pci_bus_id` as cudaDeviceGetPCIBusId writes it.
  explicit DeviceMonitor(const std::string& pci_bus_id);
  ~DeviceMonitor();
  DeviceMonitor(const DeviceMonitor&) = delete;
  DeviceMonitor& operator=(const DeviceMonitor&) = delete;

  /// Driver version, power limit, highest clock; or why NVML cannot tell.
  std::vector<std::pair<std::string, std::string>> description() const;

  /// Samples from start to stop, every few milliseconds. Nothing where NVML is absent or no sample was read.
  void start();
  std::optional<DeviceState> stop();

 private:
  struct Nvml;
  void sample();

  std::unique_ptr<Nvml> nvml_;
};

}  // namespace tessera::cli
