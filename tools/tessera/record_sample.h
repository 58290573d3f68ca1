// Some records of an input, kept in memory so that several classifiers can be given the same ones.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "io/records.h"
#include "tessera/classifier/config.h"

namespace tessera::cli {

struct RecordSample {
  io::RecordBatch records;
  std::vector<int64_t> indices;  ///< [num_records], in the input
  int64_t ids_per_record = 0;
  int64_t floats_per_record = 0;

  /// Hands the records out, numbered from 0. The sample must outlive it.
  std::unique_ptr<io::RecordReader> reader() const;
};

/// Up to `count` records, spread evenly over the input where its size is known, else the first ones.
RecordSample take_sample(io::RecordReader& reader, int64_t count, const classifier::ClassifierConfig& config);

}  // namespace tessera::cli
