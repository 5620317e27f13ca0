// Memory that several threads of a test count in.

import Synchronization

/// Atomic counts, one for each item.
final class Tally: @unchecked Sendable {
  private let counts: UnsafeMutablePointer<Atomic<Int>>
  let size: Int

  init(_ size: Int) {
    self.size = size
    counts = .allocate(capacity: max(size, 1))
    for index in 0..<size { (counts + index).initialize(to: Atomic(0)) }
  }

  deinit { counts.deallocate() }

  func add(_ index: Int) { counts[index].wrappingAdd(1, ordering: .relaxed) }
  subscript(index: Int) -> Int { counts[index].load(ordering: .relaxed) }
  var all: [Int] { (0..<size).map { self[$0] } }
}
