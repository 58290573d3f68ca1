// The worker process of a fake device (unit/classifier/engine_fakes.h), for tests of the supervisor: what is asked for
// on its command line goes wrong in it.
//
//   fake_worker LANES [die_every=N] [wrong_every=N] [delay_us=N] [refuse_if=FILE] [other_bits_if=FILE] [threads=N]
//              [die_at_start=FILE]   as often as the file has bytes
//
// A record whose second id is one of Poison ends the process, or holds it up.
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <string>
#include <thread>

#include "classifier/lease_worker.h"
#include "endurance/poison.h"
#include "unit/classifier/engine_fakes.h"

namespace tessera::classifier {
namespace {

using testing::FakeClassifier;
using testing::kSequenceLength;
using testing::Poison;

using Settings = std::map<std::string, std::string>;

Settings settings_of(int argc, char** argv) {
  Settings settings;
  for (int i = 2; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    settings[argument.substr(0, equals)] = argument.substr(equals + 1);
  }
  return settings;
}

int64_t number(const Settings& settings, const std::string& name) {
  const auto found = settings.find(name);
  return found == settings.end() ? 0 : std::atoll(found->second.c_str());
}

bool file_exists(const Settings& settings, const std::string& name) {
  const auto found = settings.find(name);
  return found != settings.end() && access(found->second.c_str(), F_OK) == 0;
}

class FaultyClassifier : public FakeClassifier {
 public:
  explicit FaultyClassifier(const Settings& settings)
      : die_every_(number(settings, "die_every")),
        wrong_every_(number(settings, "wrong_every")),
        has_other_bits_(file_exists(settings, "other_bits_if")) {
    delay_us_ = number(settings, "delay_us");
    random.seed(static_cast<uint64_t>(getpid()));
  }

  void run(const Batch& batch, const Outputs& outputs) override {
    for (int64_t i = 0; i < batch.num_sentences; ++i) suffer(batch.ids[i * kSequenceLength + 1]);
    std::this_thread::sleep_for(std::chrono::microseconds(delay_us_));
    FakeClassifier::run(batch, outputs);
    if (die_every_ > 0 && num_runs > 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(2 * die_every_))) {
      raise(SIGKILL);
    }
    if (has_other_bits_ || (wrong_every_ > 0 && num_runs % wrong_every_ == 0)) outputs.logits[0] += 1;
  }

 private:
  void suffer(int32_t id) const {
    switch (static_cast<Poison>(id)) {
      case Poison::segmentation: raise(SIGSEGV); break;
      case Poison::kill: raise(SIGKILL); break;
      case Poison::exit: _exit(7);
      case Poison::hang: std::this_thread::sleep_for(std::chrono::hours(1)); break;
      case Poison::device: throw DeviceError("planted: an illegal address");
    }
  }

  int64_t die_every_, wrong_every_, delay_us_ = 0;
  bool has_other_bits_;
};

/// As in a container that has no more processes. The limit does not count for root: this process becomes a user who has
/// no other.
void limit_threads(int64_t count) {
  const auto some_user = static_cast<uid_t>(20'000 + getpid() % 40'000);
  const rlimit limit = {.rlim_cur = static_cast<rlim_t>(count), .rlim_max = static_cast<rlim_t>(count)};
  if (setrlimit(RLIMIT_NPROC, &limit) != 0 || (geteuid() == 0 && setuid(some_user) != 0)) _exit(8);
}

void die_at_start(const std::string& file) {
  struct stat status {};
  if (stat(file.c_str(), &status) != 0 || status.st_size == 0) return;
  if (truncate(file.c_str(), status.st_size - 1) == 0) raise(SIGKILL);
}

int serve(int argc, char** argv) {
  become_worker_process();
  const Settings settings = settings_of(argc, argv);
  if (settings.contains("die_at_start")) die_at_start(settings.at("die_at_start"));
  const int num_lanes = std::atoi(argv[1]);
  if (settings.contains("threads")) limit_threads(number(settings, "threads"));
  const bool ends_well = serve_leases(num_lanes, [&](const ChannelShape&) {
    if (file_exists(settings, "refuse_if")) throw DeviceError("planted: the device does not come back");
    std::vector<std::unique_ptr<Classifier>> classifiers;
    for (int lane = 0; lane < num_lanes; ++lane) classifiers.push_back(std::make_unique<FaultyClassifier>(settings));
    return classifiers;
  });
  return ends_well ? 0 : 1;
}

}  // namespace
}  // namespace tessera::classifier

int main(int argc, char** argv) { return argc < 2 ? 2 : tessera::classifier::serve(argc, argv); }
