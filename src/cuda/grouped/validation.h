// What every kernel of a Problem asks of it.
#pragma once

#include "cuda/grouped/problem.h"

namespace tessera::grouped {

/// Throws Error naming the argument for a type, width or alignment that no product of this role can take.
void validate(const Problem& problem, Role role);

}  // namespace tessera::grouped
