// A growable array whose growth can fail. It owns the memory that a document, a vocabulary or a long text needs;
// Swift's own Array ends the process when memory runs out, which a library must not do to its host.
// It refuses element types that need destruction, and it never hands out an element outside `0..<count`.

import Glibc
import TamisRuntime

package struct GrowableBuffer<Element: BitwiseCopyable>: ~Copyable {
  private var storage: UnsafeMutablePointer<Element>?
  package private(set) var count = 0
  private var capacity = 0

  package init() {}

  deinit { free(storage) }

  /// Room for `total` elements altogether.
  package mutating func reserve(_ total: Int) throws(TamisError) {
    guard total > capacity else { return }
    let (doubled, tooLong) = capacity.multipliedReportingOverflow(by: 2)
    let target = max(total, tooLong ? total : doubled, 16)
    let (bytes, overflow) = target.multipliedReportingOverflow(by: MemoryLayout<Element>.stride)
    guard !overflow, let grown = realloc(storage, bytes) else {
      throw TamisError(.memory, "out of memory: \(total) elements of \(MemoryLayout<Element>.stride) bytes")
    }
    storage = grown.assumingMemoryBound(to: Element.self)
    capacity = target
  }

  @inline(__always)
  package mutating func append(_ element: Element) throws(TamisError) {
    if count == capacity { try reserve(count &+ 1) }
    guard let storage else { return }
    storage[count] = element
    count &+= 1
  }

  package mutating func append(contentsOf elements: UnsafeBufferPointer<Element>) throws(TamisError) {
    guard let source = elements.baseAddress, elements.count > 0 else { return }
    let (total, overflow) = count.addingReportingOverflow(elements.count)
    guard !overflow else { throw TamisError(.memory, "out of memory") }
    try reserve(total)
    guard let storage else { return }
    (storage + count).update(from: source, count: elements.count)
    count = total
  }

  package mutating func append(repeating element: Element, count added: Int) throws(TamisError) {
    guard added > 0 else { return }
    let (total, overflow) = count.addingReportingOverflow(added)
    guard !overflow else { throw TamisError(.memory, "out of memory") }
    try reserve(total)
    guard let storage else { return }
    (storage + count).update(repeating: element, count: added)
    count = total
  }

  /// Forgets the elements from `length` on; the memory stays.
  package mutating func truncate(to length: Int) {
    if length >= 0, length < count { count = length }
  }

  package func element(at index: Int) -> Element? {
    guard index >= 0, index < count, let storage else { return nil }
    return storage[index]
  }

  package mutating func set(_ element: Element, at index: Int) {
    guard index >= 0, index < count, let storage else { return }
    storage[index] = element
  }

  /// The elements in place: valid until the next mutation, and no longer than the buffer.
  package var elements: UnsafeBufferPointer<Element> { UnsafeBufferPointer(start: storage, count: count) }
  package var mutableElements: UnsafeMutableBufferPointer<Element> {
    UnsafeMutableBufferPointer(start: storage, count: count)
  }
}

// Moved between threads with the object that owns it; shared only for reading.
extension GrowableBuffer: @unchecked Sendable {}
