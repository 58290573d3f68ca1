// endurance_faults FOLDER PART PARTS KIND...: `tessera classify` in this program, again and again, each time with one
// call that fails: every call of the kinds named (allocation, file, thread) of its own code, site by site; of the sites
// one of so many parts. Prints JSON.
//
// After each: an exit code that is documented and a message that is not "internal"; nothing left that was taken; where
// the output is there it is whole and its counts add up; and the same command with --resume completes it, byte for
// byte. Three runs are broken so: one from the beginning, one that resumes, and one with worker processes, whose calls
// fail too.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "commands.h"
#include "endurance/fault_points.h"
#include "guarded_command.h"
#include "tessera/core/check.h"
#include "worker_process.h"

namespace tessera::testing {
namespace {

namespace fs = std::filesystem;
constexpr unsigned kSecondsPerRun = 30;  // then it hangs, and is ended by SIGALRM
constexpr int64_t kRecords = 40;
constexpr int kAttempts = 15;    // at a call that threads make in some orders alone
constexpr int64_t kStatics = 1;  // blocks that an undisturbed run leaves: what is made once and kept
// Where memory runs out, a constructor of the JSON library (statistics, journal) keeps what it has.
constexpr int64_t kJsonBlocks = 8;
constexpr const char* kSharedFile = "ENDURANCE_FAULTS";  // the environment's name of it, for worker processes

std::string content_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// Descriptor 2 leads to a file meanwhile.
class CapturedMessages {
 public:
  explicit CapturedMessages(fs::path path) : path_(std::move(path)), kept_(dup(STDERR_FILENO)) {
    const int file = ::creat(path_.c_str(), 0600);
    dup2(file, STDERR_FILENO);
    close(file);
  }
  std::string end() {
    dup2(kept_, STDERR_FILENO);
    close(kept_);
    return content_of(path_);
  }

 private:
  fs::path path_;
  int kept_;
};

struct Outcome {
  int exit_code = 0;
  std::string messages;
  int64_t blocks_left = 0, descriptors_left = 0;
};

int64_t open_descriptors() { return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator()); }

class Harness {
 public:
  Harness(fs::path folder, uint64_t part, uint64_t num_parts, std::set<faults::Kind> kinds)
      : folder_(std::move(folder)), part_(part), num_parts_(num_parts), kinds_(std::move(kinds)) {}

  nlohmann::ordered_json run() {
    const std::vector<std::string> plain = {"--threads=2"}, isolated = {"--threads=2", "--isolate"};
    prepare();
    nlohmann::ordered_json row = {{"ok", false}};
    row["from_the_beginning"] = break_run(plain, false);
    row["resumed"] = break_run(plain, true);
    row["with_worker_processes"] = break_run(isolated, false);
    row["problems"] = problems_;
    row["ok"] = problems_.empty();
    return row;
  }

 private:
  Outcome classify(const std::vector<std::string>& more, bool resumes, const std::function<void()>& arm) {
    CLI::App app;
    const cli::Command command = cli::add_classify(app);
    std::vector<std::string> arguments = {"--model=" + (folder_ / "model").string(),
                                          "--input=" + (folder_ / "model" / "inputs.bin").string(),
                                          "--format=ids",
                                          "--device=cpu",
                                          "--batch-size=4",
                                          "--output=" + (folder_ / "out.csv").string(),
                                          "--statistics=" + (folder_ / "statistics.json").string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    if (resumes) arguments.emplace_back("--resume");
    std::reverse(arguments.begin(), arguments.end());
    app.parse(std::move(arguments));
    Outcome outcome;
    CapturedMessages messages(folder_ / "messages");
    int ends[2];
    TESSERA_CHECK(pipe(ends) == 0, errno);
    const pid_t child = fork();
    if (child == 0) {
      close(ends[0]);
      alarm(kSecondsPerRun);
      const int64_t descriptors = open_descriptors(), blocks = faults::live_blocks();
      arm();
      const int exit_code = cli::run_guarded(command);
      faults::pause();
      const int64_t left[2] = {faults::live_blocks() - blocks, open_descriptors() - descriptors};
      _exit(write(ends[1], left, sizeof(left)) == sizeof(left) ? exit_code : 99);
    }
    close(ends[1]);
    int status = 0;
    waitpid(child, &status, 0);
    int64_t left[2] = {0, 0};
    if (read(ends[0], left, sizeof(left)) != sizeof(left)) left[0] = left[1] = 0;
    close(ends[0]);
    seen_ = faults::stop();
    outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    outcome.blocks_left = left[0];
    outcome.descriptors_left = left[1];
    outcome.messages = messages.end();
    return outcome;
  }

  void clean() const {
    for (const char* name :
         {"out.csv", "out.csv.partial", "out.csv.journal", "out.csv.manifest.json", "statistics.json"}) {
      fs::remove(folder_ / name);
    }
  }

  void prepare() {
    {
      CLI::App app;
      const cli::Command command = cli::add_synth(app);
      app.parse("--preset=small --inputs=" + std::to_string(kRecords) + " --output=" + (folder_ / "model").string());
      TESSERA_CHECK(cli::run_guarded(command) == 0, "synth");
    }
    clean();
    TESSERA_CHECK(classify({}, false, [] {}).exit_code == 0, "the undisturbed run");
    golden_ = content_of(folder_ / "out.csv");
    TESSERA_CHECK(std::count(golden_.begin(), golden_.end(), '\n') == kRecords + 1, golden_.size());
    make_broken();
  }

  /// What a run leaves whose input could not be read further in the middle: partial output and journal.
  void make_broken() {
    clean();
    classify({"--threads=2"}, false, faults::watch);
    for (const faults::Site& site : faults::Seen(seen_).sites) {
      if ((site.call != "read" && site.call != "pread") || site.num_calls < 8) continue;
      clean();
      const Outcome outcome = classify({"--threads=2"}, false, [&] { faults::fail_at(site.hash, 6); });
      if (outcome.exit_code != 4 || !fs::exists(folder_ / "out.csv.journal")) continue;
      fs::create_directories(folder_ / "broken");
      for (const char* name : {"out.csv.partial", "out.csv.journal"}) {
        fs::copy_file(folder_ / name, folder_ / "broken" / name, fs::copy_options::overwrite_existing);
      }
      return;
    }
    TESSERA_CHECK(false, "no fault left a journal", seen_.sites.size());
  }

  void set_stage(bool resumes) const {
    clean();
    if (resumes) fs::copy(folder_ / "broken", folder_, fs::copy_options::overwrite_existing);
  }

  nlohmann::ordered_json break_run(const std::vector<std::string>& more, bool resumes) {
    std::map<faults::Kind, int64_t> visited, failed;
    std::map<int, int64_t> codes;
    std::set<uint64_t> known;
    std::deque<std::pair<faults::Site, uint64_t>> waiting;
    // Seen in a run where `before` failed, 0 where nothing did. What is seen only where two calls have failed is left.
    const auto note = [&](const faults::Seen& seen, uint64_t before) {
      for (const faults::Site& site : seen.sites) {
        if (!kinds_.contains(site.kind) || site.hash / 7 % num_parts_ != part_) continue;
        if (before != 0 && site.kind == faults::Kind::allocation) continue;
        if (!known.insert(site.hash).second) continue;
        // An allocation that has failed in an earlier stage need not again: there are many.
        if (site.kind == faults::Kind::allocation && !allocations_.insert(site.hash).second) continue;
        ++visited[site.kind];
        waiting.push_back({site, before});
      }
    };
    // Threads take turns in other ways each time: what comes up late is found by running again.
    for (int i = 0; i < 3; ++i) {
      set_stage(resumes);
      const Outcome undisturbed = classify(more, resumes, faults::watch);
      TESSERA_CHECK(undisturbed.exit_code == 0, "undisturbed");
      TESSERA_CHECK(undisturbed.descriptors_left == 0 && undisturbed.blocks_left <= kStatics, undisturbed.blocks_left);
      note(seen_, 0);
    }
    while (!waiting.empty()) {
      const auto [site, before] = waiting.front();
      waiting.pop_front();
      bool reached = false;
      for (int attempt = 0; attempt < kAttempts && !reached; ++attempt) {
        set_stage(resumes);
        // It may be one that also comes without the other, which only this run has seen.
        const Outcome outcome = break_once(more, resumes, site, attempt % 2 == 0 ? before : 0);
        reached = seen_.has_failed;
        ++codes[outcome.exit_code];
        // Of allocations there are too many behind others: every way to report an error allocates.
        if (before == 0 && site.kind != faults::Kind::allocation) note(seen_, site.hash);
      }
      failed[site.kind] += reached;
      if (!reached && std::getenv("ENDURANCE_TELL") != nullptr) {
        std::fprintf(stderr, "not reached: %s %llx behind %llx\n", site.call.c_str(),
                     static_cast<unsigned long long>(site.hash), static_cast<unsigned long long>(before));
      }
    }
    nlohmann::ordered_json result;
    for (const auto& [kind, count] : visited) {
      result[faults::kKindNames[static_cast<int>(kind)]] = {{"sites", count}, {"failed", failed[kind]}};
    }
    for (const auto& [code, count] : codes) result["exit_codes"][std::to_string(code)] = count;
    return result;
  }

  Outcome break_once(const std::vector<std::string>& more, bool resumes, const faults::Site& site, uint64_t before) {
    Outcome outcome = classify(more, resumes, [&] { faults::fail_at(site.hash, 0, before); });
    const std::string where = str_cat(site.call, " ", site.hash, ": exit code ", outcome.exit_code, ", '",
                                      outcome.messages.substr(0, 300), "'");
    if (outcome.descriptors_left != 0) problem(where + ": descriptors are left open");
    const bool is_allocation = site.kind == faults::Kind::allocation;
    if (outcome.blocks_left > kStatics + (is_allocation ? kJsonBlocks : 0))
      problem(str_cat(where, ": ", outcome.blocks_left, " blocks of memory are left"));
    static const std::set<int> kDocumented = {0, 2, 3, 4, 5};
    // Destructors of the JSON library allocate, or meet what its constructors left, which ends the process: a death
    // like any other, and what it wrote is resumed below.
    const bool ended = is_allocation && (outcome.exit_code == -SIGABRT || outcome.exit_code == -SIGSEGV);
    const bool documented =
        kDocumented.contains(outcome.exit_code) && outcome.messages.find("internal:") == std::string::npos;
    if (!ended && !documented) {
      problem(where);
    }
    const bool is_whole = fs::exists(folder_ / "out.csv") && content_of(folder_ / "out.csv") == golden_;
    if (fs::exists(folder_ / "out.csv") && !is_whole) problem(where + ": an output that is not whole has its name");
    if ((outcome.exit_code == 0 || outcome.exit_code == 5) && !is_whole) problem(where + ": no output");
    if (outcome.exit_code == 0 && !counts_add_up()) problem(where + ": counts that do not add up");
    faults::Seen seen = seen_;
    const Outcome again = classify({"--threads=2"}, true, [] {});
    if (again.exit_code != 0 || content_of(folder_ / "out.csv") != golden_) {
      problem(str_cat(where, ": the same with --resume: exit code ", again.exit_code, ", '",
                      again.messages.substr(0, 200), "'"));
    }
    seen_ = std::move(seen);
    return outcome;
  }

  bool counts_add_up() const {
    const auto counts = nlohmann::json::parse(content_of(folder_ / "statistics.json"), nullptr, false);
    return !counts.is_discarded() && counts.at("records_read") == kRecords &&
           counts.at("records_ok").get<int64_t>() + counts.at("records_failed").get<int64_t>() == kRecords;
  }

  void problem(const std::string& text) {
    if (problems_.size() < 20) problems_.push_back(text);
  }

  fs::path folder_;
  uint64_t part_, num_parts_;
  std::set<faults::Kind> kinds_;
  std::string golden_;
  faults::Seen seen_;
  std::set<uint64_t> allocations_;  // sites
  std::vector<std::string> problems_;
};

}  // namespace
}  // namespace tessera::testing

int main(int argc, char** argv) {
  using namespace tessera;
  if (argc > 1 && std::string(argv[1]) == cli::kWorkerCommand) {
    if (const char* file = std::getenv(testing::kSharedFile)) testing::faults::share(file);
    return cli::run_guarded([&] { return cli::run_worker_process({argv + 2, argv + argc}); });
  }
  if (argc < 5) return 2;
  std::set<testing::faults::Kind> kinds;
  for (const int kind : {0, 1, 2}) {
    if (std::find(argv + 4, argv + argc, std::string(testing::faults::kKindNames[kind])) != argv + argc) {
      kinds.insert(static_cast<testing::faults::Kind>(kind));
    }
  }
  signal(SIGPIPE, SIG_IGN);
  const std::string file = std::string(argv[1]) + "/faults";
  testing::faults::share(file.c_str());
  setenv(testing::kSharedFile, file.c_str(), 1);
  const auto row =
      testing::Harness(argv[1], std::strtoull(argv[2], nullptr, 10), std::strtoull(argv[3], nullptr, 10), kinds).run();
  std::printf("%s\n", row.dump().c_str());
  return row["ok"].get<bool>() ? 0 : 1;
}
