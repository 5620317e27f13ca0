// One page: rows of all layers (PageLayout) and who holds it. Sequences share pages; whoever finds that it may not
// write a page copies it first. A page of the cache begins with the count of its holders; a page of a mapped file is
// read-only, and every hold on it is a hold on the mapping. Refuses nothing: the cache makes and frees pages.

import Synchronization
import TamisFormats

struct Page: @unchecked Sendable {
  /// 64-byte aligned.
  let memory: UnsafeMutableRawPointer
  /// nil: memory of the cache, which begins with the count of sequences that hold it.
  let file: Unmanaged<MappedFile>?

  /// A page that nobody but the caller holds; its rows are undefined.
  init(fresh memory: UnsafeMutableRawPointer) {
    self.init(memory, nil)
    references.initialize(to: Atomic(1))
  }

  init(_ memory: UnsafeMutableRawPointer, _ file: Unmanaged<MappedFile>?) {
    self.memory = memory
    self.file = file
  }

  private var references: UnsafeMutablePointer<Atomic<Int>> { memory.assumingMemoryBound(to: Atomic<Int>.self) }

  /// Is the caller the only holder of memory that may change? Then only the caller can make it shared.
  var isWritable: Bool { file == nil && references.pointee.load(ordering: .acquiring) == 1 }

  func retain() {
    if let file { _ = file.retain() } else { references.pointee.wrappingAdd(1, ordering: .relaxed) }
  }

  /// True: that was the last holder of a page of the cache, and the memory is the caller's to free.
  func releaseIsLast() -> Bool {
    if let file {
      file.release()
      return false
    }
    return references.pointee.wrappingSubtract(1, ordering: .acquiringAndReleasing).newValue == 0
  }
}
