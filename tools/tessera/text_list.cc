#include "text_list.h"

#include <algorithm>
#include <utility>

#include "tessera/core/check.h"

namespace tessera::cli {

TextListReader::TextListReader(std::vector<std::string> texts, std::vector<std::string> errors)
    : texts_(std::move(texts)), errors_(std::move(errors)) {
  errors_.resize(texts_.size());
}

bool TextListReader::next(int64_t max_records, io::RecordBatch& batch) {
  TESSERA_CHECK(max_records >= 1, max_records);
  const size_t count = std::min(static_cast<size_t>(max_records), texts_.size() - next_);
  batch.first_index = static_cast<int64_t>(next_);
  batch.num_records = static_cast<int64_t>(count);
  batch.texts.assign(count, {});
  batch.errors.assign(count, {});
  std::copy_n(texts_.begin() + batch.first_index, count, batch.texts.begin());
  std::copy_n(errors_.begin() + batch.first_index, count, batch.errors.begin());
  next_ += count;
  return count > 0;
}

}  // namespace tessera::cli
