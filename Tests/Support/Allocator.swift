// An allocator hook for tests that counts, fills with garbage, and refuses the calls it is told to.

import Glibc
import Synchronization
package import TamisRuntime

/// Used from any thread.
package final class Allocator: @unchecked Sendable {
  private let calls = Atomic<Int>(0)
  private let refusals = Atomic<Int>(0)
  private let held = Atomic<Int>(0)
  private let failFrom = Atomic<Int>(0)
  private let failUntil = Atomic<Int>(0)

  package init() {}

  /// Calls so far, refused ones included.
  package var callCount: Int { calls.load(ordering: .relaxed) }
  package var refusedCount: Int { refusals.load(ordering: .relaxed) }
  /// Bytes not given back.
  package var bytesHeld: Int { held.load(ordering: .relaxed) }

  /// Calls in `range` (counted from 1) are refused.
  package func fail(_ range: Range<Int>) {
    failFrom.store(range.lowerBound, ordering: .relaxed)
    failUntil.store(range.upperBound, ordering: .relaxed)
  }

  package func fail(from call: Int) { fail(call..<Int.max) }

  /// Whoever asks for these keeps the allocator until the process ends: a context may give memory back after the
  /// test's last mention of it.
  package var options: ContextOptions {
    var options = ContextOptions()
    options.threads = 2
    options.user = Unmanaged.passRetained(self).toOpaque()
    options.allocate = { user, bytes, alignment in Allocator.of(user)?.allocate(bytes, alignment) }
    options.release = { user, memory, bytes in Allocator.of(user)?.release(memory, bytes) }
    return options
  }

  private static func of(_ user: UnsafeMutableRawPointer?) -> Allocator? {
    user.map { Unmanaged<Allocator>.fromOpaque($0).takeUnretainedValue() }
  }

  private func allocate(_ size: Int, _ alignment: Int) -> UnsafeMutableRawPointer? {
    let call = calls.wrappingAdd(1, ordering: .relaxed).newValue
    if call >= failFrom.load(ordering: .relaxed), call < failUntil.load(ordering: .relaxed) {
      refusals.wrappingAdd(1, ordering: .relaxed)
      return nil
    }
    var memory: UnsafeMutableRawPointer?
    guard posix_memalign(&memory, alignment, size) == 0 else { return nil }
    memory?.initializeMemory(as: UInt8.self, repeating: 0x7f, count: size)
    held.wrappingAdd(size, ordering: .relaxed)
    return memory
  }

  private func release(_ memory: UnsafeMutableRawPointer?, _ size: Int) {
    memory?.initializeMemory(as: UInt8.self, repeating: 0x7e, count: size)
    held.wrappingSubtract(size, ordering: .relaxed)
    free(memory)
  }
}
