// What lets a run of hours be broken off, continued, and shared among processes: which run it is, its journal, its
// part of the output.
//
//   LongRun run(options);                      // complains about --resume and --shard that cannot be
//   RunStart start = run.begin(fingerprint);   // where to go on
//   ...
//   run.commit(output, ...);                   // a later run with --resume finds it finished
#pragma once

#include <atomic>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "io/fingerprint.h"
#include "io/journal.h"
#include "io/manifest.h"
#include "io/records.h"
#include "io/results.h"
#include "io/shard.h"
#include "output.h"
#include "result_writer.h"
#include "tessera/classifier/engine.h"

namespace tessera::cli {

struct LongRunOptions {
  std::string input;   ///< empty: sentences of the command line
  std::string output;  ///< as given, without the shard
  std::string shard;   ///< "", "I/N" or "auto"
  bool resume = false;
  bool quiet = false;
};

/// What the results of a run depend on, besides its input.
struct RunIdentity {
  std::string model;  ///< directory
  io::InputFormat input_format = io::InputFormat::text;
  std::vector<std::pair<std::string, std::string>> records;  ///< describe() of the record options
  io::ResultFormat results;
  std::string back_ends;   ///< Engine::description()
  std::string arithmetic;  ///< precision, form: whatever changes bits
};

class LongRun {
 public:
  /// Throws Error where --resume or --shard has no file to work with.
  explicit LongRun(const LongRunOptions& options);

  /// OUTPUT, or this shard's part of it.
  const std::string& output_path() const { return output_path_; }
  const std::optional<io::Shard>& shard() const { return shard_; }

  /// Where to begin. Claims the output first: Error if another process is writing it. Reads model and input, to know
  /// the run again, unless nothing can be resumed. Throws Error if the journal is of another run, or the partial output
  /// is not what the journal says. A run from the beginning drops what an earlier one left.
  RunStart begin(const RunIdentity& identity);
  /// Behind what the start keeps. Once, after `begin`.
  Output open_output(const RunStart& start);
  /// With --resume: the manifest of the output, or of this shard's part, if an earlier run finished it.
  const std::optional<io::PartManifest>& finished() const { return finished_; }
  /// The records of this shard from the start on.
  std::unique_ptr<io::RecordReader> select(std::unique_ptr<io::RecordReader> reader, io::InputFormat format,
                                           const io::Checkpoint& start, const std::atomic<bool>& stop);
  /// Null where nothing can be resumed.
  io::Journal* journal() { return journal_.get(); }
  /// Whether a checkpoint is on disk, so that --resume has something to go on from.
  bool can_resume() const { return journal_ != nullptr && (is_resumed_ || journal_->has_checkpoint()); }
  /// The output gets its name, and a manifest if it is a part or may be asked to be resumed; the journal goes. Throws
  /// Incomplete.
  void commit(Output& output, const io::Checkpoint& done, const io::ResultFormat& results);

 private:
  RunStart resume();
  std::optional<io::PartManifest> find_finished() const;
  io::PartManifest make_manifest(const io::Checkpoint& done, const io::ResultFormat& results) const;
  /// Parts may come from several machines, with copies of the input whose times differ.
  const io::Fingerprint& manifest_fingerprint() const { return shard_ ? identity_ : fingerprint_; }
  void drop_earlier_run() const;
  void claim_output();

  LongRunOptions options_;
  std::optional<io::Shard> shard_;
  std::string output_path_;
  std::filesystem::path journal_path_;  // empty: nothing can be resumed
  std::filesystem::path partial_path_;
  std::optional<io::OutputClaim> claim_;  // of a file, until it is opened
  io::Fingerprint identity_;              // alike on every machine
  io::Fingerprint fingerprint_;           // with what is a machine's own
  std::unique_ptr<io::Journal> journal_;
  bool is_resumed_ = false;
  std::optional<io::PartManifest> finished_;
  io::RecordBlocks blocks_;
  const io::SelectedReader* selected_ = nullptr;
};

}  // namespace tessera::cli
