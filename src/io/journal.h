// The journal of a long run: which run it is, and how much of its output is on disk.
//
//   Journal journal("labels.csv.journal", fingerprint);
//   output.sync();                    // first the results,
//   journal.append(checkpoint);       // then the line that counts them
//   ...
//   std::optional<JournalContent> content = read_journal("labels.csv.journal");
//
// A text of JSON lines: the first names the run, each further one is a checkpoint, the last one counts. A crash can
// tear the last line only, and a torn line is as good as none; anything else that cannot be read is an Error.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "io/fingerprint.h"

namespace tessera::io {

/// How far an output is on disk.
struct Checkpoint {
  int64_t num_ok = 0;
  int64_t num_failed = 0;
  int64_t next_index = 0;  ///< in the input, behind the last record whose result counts
  uint64_t num_bytes = 0;  ///< of the output
  std::string checksum;    ///< of these bytes (checksum.h)

  int64_t num_records() const { return num_ok + num_failed; }
  bool operator==(const Checkpoint&) const = default;
};

struct JournalContent {
  Fingerprint fingerprint;
  Checkpoint last;
};

/// Larger than any that a run writes in a century: a run makes its checkpoints ever more rarely (result_writer.h).
inline constexpr uint64_t kMaxJournalBytes = 64u << 20;

/// Empty if there is no such file, or none of its checkpoints is whole. Throws Error for any other damage.
std::optional<JournalContent> read_journal(const std::filesystem::path& path);

class Journal {
 public:
  /// Writes nothing yet: what is at `path` stays until the first checkpoint replaces it.
  Journal(std::filesystem::path path, Fingerprint fingerprint);

  /// On disk when it returns. The output that it counts must be there already. Throws Error.
  void append(const Checkpoint& checkpoint);
  /// Whether one has been written, whole, by this object.
  bool has_checkpoint() const { return has_checkpoint_; }

 private:
  std::filesystem::path path_;
  Fingerprint fingerprint_;
  bool has_checkpoint_ = false;
  bool is_started_ = false;  // the file is this run's and ends with a whole line
};

}  // namespace tessera::io
