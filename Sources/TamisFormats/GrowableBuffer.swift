// A growable array in a context's memory, whose growth can fail. It holds what grows with data: a document, a
// vocabulary, a long text; Swift's own Array ends the process when memory runs out, which a library must not do.
// It refuses element types that need destruction, and it never hands out an element outside `0..<count`.

package import TamisRuntime

package struct GrowableBuffer<Element: BitwiseCopyable>: ~Copyable {
  private var storage: UnsafeMutablePointer<Element>?
  package private(set) var count = 0
  private var capacity = 0
  package let context: Context

  package init(_ context: Context) { self.context = context }

  deinit {
    if let storage { context.release(storage, bytes: capacity &* MemoryLayout<Element>.stride) }
  }

  /// Room for `total` elements altogether.
  package mutating func reserve(_ total: Int) throws(TamisError) {
    guard total > capacity else { return }
    let (doubled, tooLong) = capacity.multipliedReportingOverflow(by: 2)
    let target = max(total, tooLong ? total : doubled, 16)
    let stride = MemoryLayout<Element>.stride
    let bytes = try Size.product(target, stride)
    let grown = try context.allocate(bytes: bytes, alignment: 64, what: "formats").assumingMemoryBound(to: Element.self)
    if let storage {
      grown.update(from: storage, count: count)
      context.release(storage, bytes: capacity &* stride)
    }
    storage = grown
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
    let total = try Size.sum(count, elements.count)
    try reserve(total)
    guard let storage else { return }
    (storage + count).update(from: source, count: elements.count)
    count = total
  }

  package mutating func append(repeating element: Element, count added: Int) throws(TamisError) {
    guard added > 0 else { return }
    let total = try Size.sum(count, added)
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
