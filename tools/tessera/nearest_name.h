// "Did you mean": the name that a mistyped one was meant to be.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::cli {

/// How many characters have to be added, removed, replaced or swapped with their neighbour to make `b` of `a`; none
/// twice (optimal string alignment). Time a.size() * b.size().
size_t edit_distance(std::string_view a, std::string_view b);

/// The first of the nearest of `names`, or "" where none is near: a third of the name's characters may be wrong, one at
/// least, but never all of them.
std::string nearest_name(std::string_view typed, const std::vector<std::string>& names);

}  // namespace tessera::cli
