// Time in nanoseconds: the wall's (monotonic) and the calling thread's own processor time.
import Glibc

package enum Clock {
  package static func wall() -> UInt64 { read(CLOCK_MONOTONIC) }
  package static func threadCPU() -> UInt64 { read(CLOCK_THREAD_CPUTIME_ID) }

  private static func read(_ clock: clockid_t) -> UInt64 {
    var time = timespec()
    guard clock_gettime(clock, &time) == 0 else { return 0 }
    return UInt64(truncatingIfNeeded: time.tv_sec) &* 1_000_000_000 &+ UInt64(truncatingIfNeeded: time.tv_nsec)
  }
}
