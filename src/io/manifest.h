// What a shard's part of the output holds, in a small JSON file beside it; and putting the parts together.
//
//   write_manifest("labels.csv.0-of-2", manifest);                      // once the part has its final name
//   MergeSummary summary = merge_parts({"labels.csv.0-of-2", "labels.csv.1-of-2"}, "labels.csv");
//
// A part is whole when its manifest is there: the manifest is written last, and appears at once or not at all.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "io/fingerprint.h"
#include "io/shard.h"

namespace tessera::io {

struct PartManifest {
  Shard shard;
  RecordBlocks records;       ///< their indices in the input; `end` is known
  int64_t total_records = 0;  ///< of the whole input
  int64_t num_ok = 0;         ///< with num_failed, the records of the part
  int64_t num_failed = 0;
  std::string output_format;  ///< text, csv, jsonl or bin
  uint64_t header_bytes = 0;  ///< before the first result
  uint64_t record_bytes = 0;  ///< of each result; 0: each is a line
  uint64_t num_bytes = 0;     ///< of the part
  std::string checksum;       ///< of the part (checksum.h)
  Fingerprint fingerprint;    ///< of the run, equal for all parts

  int64_t num_records() const { return num_ok + num_failed; }
  bool operator==(const PartManifest&) const = default;
};

/// PART.manifest.json
std::filesystem::path manifest_path(const std::filesystem::path& part);

void write_manifest(const std::filesystem::path& part, const PartManifest& manifest);

/// Throws Error naming the file and what is wrong in it; counts that contradict each other are wrong.
PartManifest read_manifest(const std::filesystem::path& part);

/// The parts of `output` that have a manifest beside it, in the order of their shards. Throws Error if there are none,
/// or if they are of different numbers of shards, as an earlier run may have left them.
std::vector<std::filesystem::path> find_parts(const std::filesystem::path& output);

struct MergeSummary {
  int64_t num_ok = 0;
  int64_t num_failed = 0;
  uint64_t num_bytes = 0;
};

/// Writes the results of `parts` (each shard once, in any order) to `output` in the order of the input: the bytes that
/// one run over the whole input would have written. Everything is checked before the first byte is written: that every
/// shard is there, that no record is missing or twice, that the parts belong to one run and are unchanged. Throws Error
/// naming the shard, the part or the records.
MergeSummary merge_parts(const std::vector<std::filesystem::path>& parts, const std::filesystem::path& output);

}  // namespace tessera::io
