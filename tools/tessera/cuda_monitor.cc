#include "cuda_monitor.h"

#include <atomic>
#include <chrono>
#include <numeric>
#include <thread>

#include "shared_library.h"
#include "text_format.h"

namespace tessera::cli {
namespace {

constexpr auto kSamplePeriod = std::chrono::milliseconds(10);
constexpr int kSuccess = 0;
constexpr unsigned kSmClock = 1;  // nvmlClockType_t

}  // namespace

// NVML's functions as its manual declares them: the toolkit may lack the header. nvmlReturn_t is an int, a device an
// opaque pointer.
struct DeviceMonitor::Nvml {
  using Device = void*;

  SharedLibrary file{"libnvidia-ml.so.1"};
  int (*init)();
  int (*shutdown)();
  int (*get_by_pci)(const char*, Device*);
  int (*get_driver)(char*, unsigned);
  int (*get_clock)(Device, unsigned, unsigned*);
  int (*get_max_clock)(Device, unsigned, unsigned*);
  int (*get_power)(Device, unsigned*);        // milliwatts
  int (*get_power_limit)(Device, unsigned*);  // milliwatts
  Device device = nullptr;
  bool started = false;
  std::string problem;

  std::thread sampler;
  std::atomic<bool> sampling{false};
  std::vector<double> clocks, watts;  // of the sampler while it runs

  bool load() {
    return file.load(init, "nvmlInit_v2") && file.load(shutdown, "nvmlShutdown") &&
           file.load(get_by_pci, "nvmlDeviceGetHandleByPciBusId_v2") &&
           file.load(get_driver, "nvmlSystemGetDriverVersion") && file.load(get_clock, "nvmlDeviceGetClockInfo") &&
           file.load(get_max_clock, "nvmlDeviceGetMaxClockInfo") && file.load(get_power, "nvmlDeviceGetPowerUsage") &&
           file.load(get_power_limit, "nvmlDeviceGetEnforcedPowerLimit");
  }
};

DeviceMonitor::DeviceMonitor(const std::string& pci_bus_id) : nvml_(std::make_unique<Nvml>()) {
  if (!nvml_->load()) {
    nvml_->problem = "NVML (libnvidia-ml.so.1) not found: no clocks, no power";
  } else if (nvml_->init() != kSuccess) {
    nvml_->problem = "NVML does not start: no clocks, no power";
  } else {
    nvml_->started = true;
    if (nvml_->get_by_pci(pci_bus_id.c_str(), &nvml_->device) != kSuccess) {
      nvml_->device = nullptr;
      nvml_->problem = "NVML does not know the device at " + pci_bus_id + ": no clocks, no power";
    }
  }
}

DeviceMonitor::~DeviceMonitor() {
  stop();
  if (nvml_->started) nvml_->shutdown();
}

std::vector<std::pair<std::string, std::string>> DeviceMonitor::description() const {
  if (nvml_->device == nullptr) return {{"monitor", nvml_->problem}};
  char driver[96] = "unknown";
  if (nvml_->get_driver(driver, sizeof(driver)) != kSuccess) driver[0] = '\0';
  unsigned limit = 0, clock = 0;
  std::string power = "power limit unknown";
  if (nvml_->get_power_limit(nvml_->device, &limit) == kSuccess) power = format_text("power limit %u W", limit / 1000);
  if (nvml_->get_max_clock(nvml_->device, kSmClock, &clock) == kSuccess)
    power += format_text(", at most %u MHz", clock);
  return {{"driver", driver}, {"power", power}};
}

void DeviceMonitor::sample() {
  while (nvml_->sampling) {
    unsigned clock = 0, power = 0;
    if (nvml_->get_clock(nvml_->device, kSmClock, &clock) == kSuccess &&
        nvml_->get_power(nvml_->device, &power) == kSuccess) {
      nvml_->clocks.push_back(clock);
      nvml_->watts.push_back(power * 1e-3);
    }
    std::this_thread::sleep_for(kSamplePeriod);
  }
}

void DeviceMonitor::start() {
  if (nvml_->device == nullptr) return;
  stop();
  nvml_->clocks.clear();
  nvml_->watts.clear();
  nvml_->sampling = true;
  nvml_->sampler = std::thread([this] { sample(); });
}

std::optional<DeviceState> DeviceMonitor::stop() {
  if (!nvml_->sampler.joinable()) return std::nullopt;
  nvml_->sampling = false;
  nvml_->sampler.join();
  if (nvml_->clocks.empty()) return std::nullopt;
  const double sum = std::accumulate(nvml_->watts.begin(), nvml_->watts.end(), 0.0);
  return DeviceState{spread_of(nvml_->clocks).median, sum / static_cast<double>(nvml_->watts.size())};
}

}  // namespace tessera::cli
