// One page: a reference count and behind it the rows of all layers (PageLayout). Sequences share pages; whoever
// finds that somebody else holds a page copies it before writing. Refuses nothing: the cache makes and frees pages.

import Synchronization

struct Page: @unchecked Sendable {
  /// 64-byte aligned; begins with the count of sequences that hold it.
  let memory: UnsafeMutableRawPointer

  /// A page that nobody but the caller holds; its rows are undefined.
  init(fresh memory: UnsafeMutableRawPointer) {
    self.memory = memory
    references.initialize(to: Atomic(1))
  }

  /// A page out of a sequence's table.
  init(_ entry: UnsafeRawPointer) { memory = UnsafeMutableRawPointer(mutating: entry) }

  private var references: UnsafeMutablePointer<Atomic<Int>> { memory.assumingMemoryBound(to: Atomic<Int>.self) }

  /// When false, the caller is the only holder, and only the caller can make it shared.
  var isShared: Bool { references.pointee.load(ordering: .acquiring) > 1 }

  func retain() { references.pointee.wrappingAdd(1, ordering: .relaxed) }

  /// True: that was the last holder, and the memory is the caller's to free.
  func releaseIsLast() -> Bool {
    references.pointee.wrappingSubtract(1, ordering: .acquiringAndReleasing).newValue == 0
  }
}
