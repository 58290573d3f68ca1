#include "nearest_name.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace tessera::cli {

size_t edit_distance(std::string_view a, std::string_view b) {
  // Rows of the table [a.size() + 1, b.size() + 1]: entry j of row i is the distance of the first i and j characters.
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  std::vector<size_t> above(row.size());
  std::vector<size_t> two_above(row.size());
  for (size_t i = 1; i <= a.size(); ++i) {
    std::swap(two_above, above);
    std::swap(above, row);
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = above[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, replaced});
      const bool is_swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (is_swapped) row[j] = std::min(row[j], two_above[j - 2] + 1);
    }
  }
  return row.back();
}

std::string nearest_name(std::string_view typed, const std::vector<std::string>& names) {
  std::string nearest;
  size_t least = std::string::npos;
  for (const std::string& name : names) {
    const size_t distance = edit_distance(typed, name);
    const bool is_near = distance <= std::max<size_t>(1, name.size() / 3) && distance < name.size();
    if (!is_near || distance >= least) continue;
    nearest = name;
    least = distance;
  }
  return nearest;
}

}  // namespace tessera::cli
