// What a run tells on standard error when it is over, and the same for programs as JSON.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "label_counts.h"
#include "tessera/classifier/engine.h"

namespace tessera::cli {

/// Devices that failed; the first failed records, one a line, and their number.
void print_failures(const classifier::RunStatistics& statistics);

/// What labelled, one line each; lanes of one device that say the same are one line.
void print_back_ends(const std::string& descriptions);

/// Counts, truncated sentences, unknown words, seconds, rate.
void print_statistics(const classifier::RunStatistics& statistics);

/// A line for each label: how often, which share of all, and the mean probability.
void print_labels(const std::vector<LabelCount>& labels);

/// The statistics as a JSON object: counts, seconds, sentences_per_second, process_seconds (since the start of
/// the command), peak_memory_bytes, threads, what `more` adds, and `labels` (label, count, mean_probability).
/// A number that is NaN stands for none.
std::string statistics_text(const classifier::RunStatistics& statistics, int num_threads,
                            const std::vector<std::pair<std::string, double>>& more = {},
                            const std::vector<LabelCount>& labels = {});

/// kAllOk, kSomeFailed, or kDeviceFailed, which says more and therefore comes first. `num_failed_before`: records that
/// failed in the parts of this run that were resumed.
int exit_code_of(const classifier::RunStatistics& statistics, int64_t num_failed_before = 0);

/// The largest resident size of this process so far.
int64_t peak_memory_bytes();

}  // namespace tessera::cli
