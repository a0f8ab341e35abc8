// Mapped files that become shorter while they are read: the system answers with SIGBUS, which ends a process.
#pragma once

#include <cstddef>

namespace hotset {

// From now on, a read behind the end of a watched file finds zeros, and `tell` is called, once, from the
// signal handler. Other SIGBUS are left to whoever handled them before. Without effect where there are no
// such signals.
void survive_cut_files(void (*tell)());

// Watch a read-only mapping of a file.
void watch_mapping(const void* data, size_t bytes);

}  // namespace hotset
