#include "long_run.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string_view>
#include <utility>

#include "cpu/gemm.h"
#include "exit_codes.h"
#include "io/checksum.h"
#include "io/file.h"
#include "option_text.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::cli {

namespace {

namespace fs = std::filesystem;

/// Of the launchers whose processes know their number: Open MPI, other MPIs, Slurm.
constexpr std::array<std::pair<const char*, const char*>, 3> kRankVariables{{
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
    {"PMI_RANK", "PMI_SIZE"},
    {"SLURM_PROCID", "SLURM_NTASKS"},
}};

/// What several processes with one output need, where a launcher started several; else empty.
std::string launcher_hint() {
  for (const auto& [rank_name, size_name] : kRankVariables) {
    const char* const size = std::getenv(size_name);
    if (std::getenv(rank_name) == nullptr || size == nullptr || std::string_view(size) == "1") continue;
    return str_cat(" (", size_name, " is ", escaped(size), ": --shard auto gives each process a part of its own)");
  }
  return "";
}

io::Shard shard_from_environment() {
  for (const auto& [rank_name, size_name] : kRankVariables) {
    const char* const rank = std::getenv(rank_name);
    const char* const size = std::getenv(size_name);
    if (rank == nullptr || size == nullptr) continue;
    try {
      return io::parse_shard(std::string(rank) + "/" + size);
    } catch (const Error& error) {
      throw Error(str_cat("--shard auto: ", rank_name, " and ", size_name), error.what());
    }
  }
  throw Error("--shard auto", "no rank in the environment",
              "OMPI_COMM_WORLD_RANK and _SIZE, PMI_RANK and _SIZE, or SLURM_PROCID and SLURM_NTASKS");
}

bool is_regular_file(const std::string& path) {
  std::error_code ignored;
  return path != "-" && !path.empty() && fs::is_regular_file(path, ignored);
}

/// Whether a file of that name can be made or replaced.
bool can_be_regular_file(const std::string& path) {
  std::error_code ignored;
  return path != "-" && !io::is_written_directly(path) &&
         (!fs::exists(path, ignored) || fs::is_regular_file(path, ignored));
}

void require_files(const char* option, const LongRunOptions& options) {
  if (!is_regular_file(options.input)) {
    throw Error(option, options.input.empty() ? "no --input" : "--input " + escaped(options.input),
                "an input that is a file: it is read again from where it is needed");
  }
  if (!can_be_regular_file(options.output)) {
    throw Error(option, "--output " + escaped(options.output), "an output that is a file");
  }
}

/// The kinds of back ends without what may change from run to run (devices, threads, memory): "CPU", "cuda".
std::string back_end_kinds(const std::string& descriptions) {
  std::string kinds;
  for (size_t begin = 0; begin < descriptions.size();) {
    const std::string kind = descriptions.substr(begin, descriptions.find_first_of(",:; \n", begin) - begin);
    if (kinds.find(kind) == std::string::npos) kinds += (kinds.empty() ? "" : "+") + kind;
    const size_t newline = descriptions.find('\n', begin);
    begin = newline == std::string::npos ? descriptions.size() : newline + 1;
  }
  return kinds;
}

/// "2024-05-31 12:00:00.123456789 UTC"
std::string modification_time(const std::string& path) {
  struct stat status {};
  tm parts{};
  if (stat(path.c_str(), &status) != 0 || gmtime_r(&status.st_mtim.tv_sec, &parts) == nullptr) return "unknown";
  char text[64];
  const size_t length = std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &parts);
  std::snprintf(text + length, sizeof(text) - length, ".%09ld UTC", static_cast<long>(status.st_mtim.tv_nsec));
  return text;
}

std::string checksum_or_none(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored) ? io::file_checksum(path) : std::string("none");
}

io::Fingerprint identity_fields(const RunIdentity& identity, const std::string& input) {
  const fs::path model = identity.model;
  const io::ResultFormat& results = identity.results;
  const std::string kinds = back_end_kinds(identity.back_ends);
  const bool on_cpu = kinds.find("CPU") != std::string::npos;
  io::Fingerprint fields{
      {"version", TESSERA_VERSION},
      {"config.json", checksum_or_none(model / "config.json")},
      {"vocab.txt", checksum_or_none(model / "vocab.txt")},
      {"model.safetensors", checksum_or_none(model / "model.safetensors")},
      {"input bytes", str_cat(io::InputFile(input).size())},
      {"input sample", io::sampled_checksum(input)},
      {"input format", std::string(io::input_format_name(identity.input_format))},
      {"output format", std::string(io::output_format_name(results.format))},
      {"expert weights", str_cat(results.num_expert_weights)},
      {"show text", results.show_text ? "yes" : "no"},
      {"back end", on_cpu ? kinds + " with " + cpu::gemm_library_name() : kinds},
      {"arithmetic", identity.arithmetic},
  };
  for (const auto& [name, value] : identity.records) fields.push_back({name, value});
  return fields;
}

bool is_binary(io::InputFormat format) {
  return format == io::InputFormat::ids || format == io::InputFormat::embeddings;
}

}  // namespace

LongRun::LongRun(const LongRunOptions& options) : options_(options), output_path_(options.output) {
  if (options.resume) require_files("--resume", options);
  if (!options.shard.empty()) {
    require_files("--shard", options);
    shard_ = options.shard == "auto" ? shard_from_environment()
                                     : with_options_named({"shard"}, [&] { return io::parse_shard(options.shard); });
    output_path_ = io::part_path(options.output, *shard_).string();
  }
  if (!is_regular_file(options.input) || !can_be_regular_file(output_path_)) return;
  const std::string target = io::output_target(output_path_).string();
  partial_path_ = target + ".partial";
  journal_path_ = target + ".journal";
}

void LongRun::claim_output() {
  if (output_path_ == "-") return;
  try {
    claim_.emplace(output_path_);
  } catch (const Error& error) {
    const std::string problem = std::string(error.what()).substr(error.where().size() + 2);
    throw Error(error.where(), problem + (shard_ ? "" : launcher_hint()));
  }
}

Output LongRun::open_output(const RunStart& start) {
  if (!claim_) return Output(output_path_);
  return start.is_resumed ? Output(std::move(*claim_), start.done.num_bytes) : Output(std::move(*claim_));
}

RunStart LongRun::begin(const RunIdentity& identity) {
  claim_output();
  if (journal_path_.empty()) return {};
  identity_ = identity_fields(identity, options_.input);
  fingerprint_ = identity_;
  // A machine's own: parts from several machines may have been made from copies of the input.
  fingerprint_.push_back({"input modified", modification_time(options_.input)});
  fingerprint_.push_back({"shard", shard_ ? str_cat(shard_->index, "/", shard_->count) : std::string("none")});
  journal_ = std::make_unique<io::Journal>(journal_path_, fingerprint_);
  if (options_.resume) return resume();
  drop_earlier_run();
  return {};
}

RunStart LongRun::resume() {
  RunStart start;
  finished_ = find_finished();
  if (finished_) return start;
  const std::optional<io::JournalContent> journal = io::read_journal(journal_path_);
  if (!journal || !claim_->has_earlier_partial()) {
    std::fprintf(stderr, "tessera: nothing to resume (no %s): starts from the beginning\n",
                 escaped((journal ? partial_path_ : journal_path_).native()).c_str());
    drop_earlier_run();
    return start;
  }
  io::require_equal(fingerprint_, journal->fingerprint, escaped(journal_path_.native()));
  const io::Checkpoint& last = journal->last;
  const std::string partial = escaped(partial_path_.native());
  const uint64_t partial_bytes = io::InputFile(partial_path_).size();
  if (partial_bytes < last.num_bytes) {
    throw Error(partial, str_cat(partial_bytes, " bytes"),
                str_cat("at least the ", last.num_bytes, " that its journal counts"));
  }
  io::add_file(partial_path_, last.num_bytes, *start.checksum);
  if (start.checksum->hex() != last.checksum) {
    throw Error(partial, str_cat("other bytes in its first ", last.num_bytes), "those that its journal counts");
  }
  start.done = last;
  start.is_resumed = is_resumed_ = true;
  if (!options_.quiet) {
    std::fprintf(stderr, "tessera: resumes behind %lld finished records\n", static_cast<long long>(last.num_records()));
  }
  return start;
}

void LongRun::drop_earlier_run() const {
  std::error_code ignored;
  if (!options_.resume && !options_.quiet && fs::exists(journal_path_, ignored)) {
    std::fprintf(stderr, "tessera: starts over; --resume would have continued from %s\n",
                 escaped(journal_path_.native()).c_str());
  }
  io::remove_file(journal_path_);
  if (shard_) io::remove_file(io::manifest_path(output_path_));  // a merge believes it
}

std::optional<io::PartManifest> LongRun::find_finished() const {
  std::error_code ignored;
  if (!fs::exists(output_path_, ignored) || !fs::exists(io::manifest_path(output_path_), ignored)) return std::nullopt;
  try {
    io::PartManifest manifest = io::read_manifest(output_path_);
    io::require_equal(manifest_fingerprint(), manifest.fingerprint, escaped(io::manifest_path(output_path_).native()));
    if (io::file_checksum(output_path_) != manifest.checksum) {
      throw Error(escaped(output_path_), "a file that was changed", "the one that its manifest describes");
    }
    return manifest;
  } catch (const Error& error) {
    if (shard_) throw;  // of a launch with other parts, which a fresh one would not fit
    if (!options_.quiet) std::fprintf(stderr, "tessera: not the output of this run: %s\n", error.what());
    return std::nullopt;
  }
}

std::unique_ptr<io::RecordReader> LongRun::select(std::unique_ptr<io::RecordReader> reader, io::InputFormat format,
                                                  const io::Checkpoint& start, const std::atomic<bool>& stop) {
  if (!shard_ && start.next_index == 0) return reader;
  if (shard_) blocks_ = io::shard_records(*shard_, is_binary(format) ? reader->num_records_hint() : -1);
  auto selected = std::make_unique<io::SelectedReader>(std::move(reader), blocks_, start.next_index, &stop);
  selected_ = selected.get();
  return selected;
}

io::PartManifest LongRun::make_manifest(const io::Checkpoint& done, const io::ResultFormat& results) const {
  io::PartManifest manifest;
  manifest.total_records = done.num_records();
  if (shard_) {
    manifest.shard = *shard_;
    manifest.total_records = selected_->num_input_records();
    TESSERA_CHECK(manifest.total_records >= 0, "the input's end was not seen", output_path_);
    manifest.records = blocks_;
  }
  manifest.records.end = std::min(manifest.records.end, manifest.total_records);
  manifest.records.begin = std::min(manifest.records.begin, manifest.records.end);
  manifest.num_ok = done.num_ok;
  manifest.num_failed = done.num_failed;
  manifest.output_format = io::output_format_name(results.format);
  manifest.header_bytes = io::result_header(results).size();
  if (results.format == io::OutputFormat::bin) {
    manifest.record_bytes = sizeof(float) * static_cast<uint64_t>(results.num_classes);
  }
  manifest.num_bytes = done.num_bytes;
  manifest.checksum = done.checksum;
  manifest.fingerprint = manifest_fingerprint();
  return manifest;
}

void LongRun::commit(Output& output, const io::Checkpoint& done, const io::ResultFormat& results) {
  output.commit();
  if (journal_path_.empty()) return;
  try {
    if (shard_ || options_.resume) io::write_manifest(output_path_, make_manifest(done, results));
    io::remove_file(journal_path_);
  } catch (const Error& error) {
    throw Incomplete(error.what());
  }
}

}  // namespace tessera::cli
