// Time in nanoseconds: the wall's (monotonic), the calling thread's own processor time, and the date.
import Glibc

package enum Clock {
  package static func wall() -> UInt64 { read(CLOCK_MONOTONIC) }
  package static func threadCPU() -> UInt64 { read(CLOCK_THREAD_CPUTIME_ID) }

  /// Since 1970, as files are dated.
  package static func date() -> Int64 { Int64(truncatingIfNeeded: read(CLOCK_REALTIME)) }

  private static func read(_ clock: clockid_t) -> UInt64 {
    var time = timespec()
    guard clock_gettime(clock, &time) == 0 else { return 0 }
    return UInt64(truncatingIfNeeded: time.tv_sec) &* 1_000_000_000 &+ UInt64(truncatingIfNeeded: time.tv_nsec)
  }
}
