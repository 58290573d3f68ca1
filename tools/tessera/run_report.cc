#include "run_report.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <sstream>

#include "exit_codes.h"
#include "output.h"
#include "tessera/core/error.h"
#include "tessera/core/thread_pool.h"

namespace tessera::cli {

namespace {

constexpr size_t kShownFailures = 20;
constexpr size_t kShownLabels = 20;  // of more classes only those that were given

// Set before main runs: what the command took in all, start-up included.
const auto process_start = std::chrono::steady_clock::now();

long long as_long(int64_t value) { return value; }

}  // namespace

void print_failures(const classifier::RunStatistics& statistics) {
  for (const std::string& device : statistics.failed_devices) {
    std::fprintf(stderr, "tessera: a device failed, the others finished its work: %s\n", device.c_str());
  }
  for (const std::string& death : statistics.worker_deaths) {
    std::fprintf(stderr, "tessera: started again: %s\n", death.c_str());
  }
  if (const int64_t more = statistics.num_worker_deaths - static_cast<int64_t>(statistics.worker_deaths.size());
      more > 0) {
    std::fprintf(stderr, "tessera: and %lld processes more\n", as_long(more));
  }
  if (statistics.num_failed == 0) return;
  std::fprintf(stderr, "tessera: %lld of %lld records failed:\n", as_long(statistics.num_failed),
               as_long(statistics.num_read));
  const size_t shown = std::min(statistics.failed.size(), kShownFailures);
  for (size_t i = 0; i < shown; ++i) {
    std::fprintf(stderr, "  [%lld] %s\n", as_long(statistics.failed[i].index), statistics.failed[i].error.c_str());
  }
  const int64_t more = statistics.num_failed - static_cast<int64_t>(shown);
  if (more > 0) std::fprintf(stderr, "  and %lld more\n", as_long(more));
}

void print_back_ends(const std::string& descriptions) {
  std::vector<std::string> lines;
  std::istringstream stream(descriptions);
  for (std::string line; std::getline(stream, line);) {
    if (std::find(lines.begin(), lines.end(), line) == lines.end()) lines.push_back(line);
  }
  for (const std::string& line : lines) std::fprintf(stderr, "tessera: %s\n", line.c_str());
}

void print_statistics(const classifier::RunStatistics& statistics) {
  std::fprintf(stderr, "tessera: %lld records read, %lld labelled, %lld failed%s\n", as_long(statistics.num_read),
               as_long(statistics.num_ok), as_long(statistics.num_failed),
               statistics.interrupted ? "; interrupted before the end of the input" : "");
  if (statistics.num_words > 0) {
    std::fprintf(stderr, "tessera: %lld sentences truncated, %lld of %lld words unknown\n",
                 as_long(statistics.num_truncated), as_long(statistics.num_unknown), as_long(statistics.num_words));
  }
  if (statistics.num_verified + statistics.num_mismatches > 0) {
    std::fprintf(stderr, "tessera: %lld batches computed again, %lld of them with other results\n",
                 as_long(statistics.num_verified + statistics.num_mismatches), as_long(statistics.num_mismatches));
  }
  std::fprintf(stderr, "tessera: %.2f s, %.0f sentences/s\n", statistics.seconds, statistics.rate());
}

void print_labels(const std::vector<LabelCount>& labels) {
  int64_t sum = 0;
  for (const LabelCount& label : labels) sum += label.count;
  for (const LabelCount& label : labels) {
    if (label.count == 0 && labels.size() > kShownLabels) continue;
    const double share = sum > 0 ? 100.0 * static_cast<double>(label.count) / static_cast<double>(sum) : 0;
    std::fprintf(stderr, "tessera: %s: %lld, %.1f %%", escaped(label.label).c_str(), as_long(label.count), share);
    const bool has_mean = label.count > 0 && label.label != kEmpty;
    std::fprintf(stderr, has_mean ? ", mean probability %.3f\n" : "\n", label.mean_probability());
  }
}

std::string statistics_text(const classifier::RunStatistics& statistics, int num_threads,
                            const std::vector<std::pair<std::string, double>>& more,
                            const std::vector<LabelCount>& labels) {
  const std::chrono::duration<double> process_seconds = std::chrono::steady_clock::now() - process_start;
  nlohmann::ordered_json json = {
      {"records_read", statistics.num_read},
      {"records_ok", statistics.num_ok},
      {"records_failed", statistics.num_failed},
      {"sentences_truncated", statistics.num_truncated},
      {"words", statistics.num_words},
      {"words_unknown", statistics.num_unknown},
      {"devices_failed", statistics.failed_devices},
      {"batches_verified", statistics.num_verified},
      {"batches_differing", statistics.num_mismatches},
      {"workers_restarted", statistics.num_worker_deaths},
      {"interrupted", statistics.interrupted},
      {"seconds", statistics.seconds},
      {"sentences_per_second", statistics.rate()},
      {"process_seconds", process_seconds.count()},
      {"peak_memory_bytes", peak_memory_bytes()},
      {"threads", num_threads > 0 ? num_threads : available_processors()},
  };
  for (const auto& [name, value] : more) json[name] = value;
  for (const LabelCount& label : labels) {
    nlohmann::ordered_json entry = {{"label", label.label}, {"count", label.count}, {"mean_probability", nullptr}};
    if (label.count > 0 && label.label != kEmpty) entry["mean_probability"] = label.mean_probability();
    json["labels"].push_back(std::move(entry));
  }
  return json.dump(2) + "\n";
}

int exit_code_of(const classifier::RunStatistics& statistics, int64_t num_failed_before) {
  if (!statistics.failed_devices.empty()) return kDeviceFailed;
  return statistics.num_failed + num_failed_before > 0 ? kSomeFailed : kAllOk;
}

int64_t peak_memory_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

}  // namespace tessera::cli
