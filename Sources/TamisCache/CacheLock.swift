// The lock over a cache's list of sequences. It is held for a few stores, or while token ids are compared, never
// while memory is allocated, a callback or a kernel runs. A child process that was forked while another thread held
// the lock takes it over: that thread does not exist there.

import Glibc
import Synchronization
import TamisShims

struct CacheLock: ~Copyable {
  private static let spins = 200

  /// The process of the holder, 0 when free.
  private let holder = Atomic<Int32>(0)

  /// Returns true when the lock was taken from a thread that the fork left behind; the list may be half changed.
  func enter() -> Bool {
    let process = getpid()
    var spin = 0
    var expected: Int32 = 0
    while true {
      let (taken, seen) = holder.compareExchange(
        expected: expected, desired: process, successOrdering: .acquiringAndReleasing, failureOrdering: .relaxed)
      if taken { return expected != 0 }
      expected = seen == process ? 0 : seen
      if seen != process { continue }
      spin &+= 1
      if spin < Self.spins { tamis_shims_pause() } else { sched_yield() }
    }
  }

  func leave() { holder.store(0, ordering: .releasing) }
}
