/* SwiftPM wants a source file in a C target. The target is the hand-written header include/tamis.h, seen through
 * the symbolic link beside this file; the Swift module Tamis implements it. */
#include "tamis.h"
