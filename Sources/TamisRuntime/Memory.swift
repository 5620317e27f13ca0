// The context's memory: the allocator hook (or malloc), the byte budget, and the cache of scratch blocks. Every
// byte whose amount depends on data comes from here and may be refused. Refuses blocks of the host's allocator
// that are not aligned as asked.
import Glibc
import Synchronization
import TamisShims

/// A block of working memory, 64-byte aligned, on loan from a context.
package struct Scratch: @unchecked Sendable {
  package let pointer: UnsafeMutableRawPointer
  package let capacity: Int
}

final class Memory: @unchecked Sendable {
  private let options: ContextOptions
  private let inUse = Atomic<UInt64>(0)
  private let peak = Atomic<UInt64>(0)
  private let cache: ScratchCache

  /// `options` has both hooks or neither.
  init(options: ContextOptions, keptScratchBytes: Int) {
    self.options = options
    self.cache = ScratchCache(limit: keptScratchBytes)
  }

  deinit { trim() }

  var bytesInUse: UInt64 { inUse.load(ordering: .relaxed) }
  var peakBytes: UInt64 { peak.load(ordering: .relaxed) }

  /// Gives the cached scratch back for one more try before it fails.
  func allocate(bytes: Int, alignment: Int, what: StaticString) throws(TamisError) -> UnsafeMutableRawPointer {
    do {
      return try allocateOnce(bytes: bytes, alignment: alignment, what: what)
    } catch {
      guard error.status != .argument, trim() else { throw error }
      return try allocateOnce(bytes: bytes, alignment: alignment, what: what)
    }
  }

  func release(_ memory: UnsafeMutableRawPointer, bytes: Int) {
    if let release = options.release {
      release(options.user, memory, max(bytes, 1))
    } else {
      free(memory)
    }
    uncharge(max(bytes, 1))
  }

  func borrowScratch(bytes: Int) throws(TamisError) -> Scratch {
    guard bytes >= 0 else { throw TamisError(.argument, "scratch: \(bytes) bytes, expected none or more") }
    if let block = cache.take(atLeast: bytes) { return block }
    let capacity = try Size.roundUp(max(bytes, 1), to: 4096)
    return Scratch(pointer: try allocate(bytes: capacity, alignment: 64, what: "scratch"), capacity: capacity)
  }

  func returnScratch(_ scratch: Scratch) {
    for block in cache.keep(scratch) { release(block.pointer, bytes: block.capacity) }
  }

  /// Gives all cached scratch back; true when there was some.
  @discardableResult
  func trim() -> Bool {
    let blocks = cache.takeAll()
    for block in blocks { release(block.pointer, bytes: block.capacity) }
    return !blocks.isEmpty
  }

  private func allocateOnce(
    bytes: Int, alignment: Int, what: StaticString
  ) throws(TamisError) -> UnsafeMutableRawPointer {
    guard bytes >= 0, alignment >= 8, alignment <= 4096, alignment & (alignment &- 1) == 0 else {
      throw TamisError(.argument, "\(what): \(bytes) bytes aligned to \(alignment) is not a possible request")
    }
    let size = max(bytes, 1)
    try charge(size, what: what)
    guard let memory = obtain(bytes: size, alignment: alignment) else {
      uncharge(size)
      throw TamisError(.memory, "\(what): no memory for \(size) bytes")
    }
    guard Int(bitPattern: memory) & (alignment &- 1) == 0 else {
      release(memory, bytes: size)
      throw TamisError(.memory, "\(what): the allocator's memory is not aligned to \(alignment) bytes")
    }
    return memory
  }

  private func obtain(bytes: Int, alignment: Int) -> UnsafeMutableRawPointer? {
    if let allocate = options.allocate { return allocate(options.user, bytes, alignment) }
    var memory: UnsafeMutableRawPointer?
    return posix_memalign(&memory, alignment, bytes) == 0 ? memory : nil
  }

  private func charge(_ bytes: Int, what: StaticString) throws(TamisError) {
    let limit = options.maxBytes == 0 ? UInt64.max : options.maxBytes
    var old = inUse.load(ordering: .relaxed)
    while true {
      let (sum, overflow) = old.addingReportingOverflow(UInt64(truncatingIfNeeded: bytes))
      guard !overflow, sum <= limit else {
        throw TamisError(.budget, "\(what): \(bytes) bytes on top of \(old) exceed the context's \(limit)")
      }
      let (done, seen) = inUse.weakCompareExchange(expected: old, desired: sum, ordering: .relaxed)
      if done {
        peak.max(sum, ordering: .relaxed)
        return
      }
      old = seen
    }
  }

  private func uncharge(_ bytes: Int) {
    inUse.wrappingSubtract(UInt64(truncatingIfNeeded: bytes), ordering: .relaxed)
  }
}

/// Blocks kept for reuse: fresh pages cost a fault each. At most 16 blocks and `limit` bytes; the smallest go
/// first. The lock is only ever tried: a caller that cannot have it does without the cache, so a lock that a
/// fork froze in the child costs speed and nothing else.
private final class ScratchCache: @unchecked Sendable {
  private let limit: Int
  private let lock = BusyFlag()
  private var blocks: [Scratch] = []
  private var bytes = 0

  init(limit: Int) {
    self.limit = limit
    blocks.reserveCapacity(17)
  }

  /// The smallest block that is large enough.
  func take(atLeast needed: Int) -> Scratch? {
    guard tryLock() else { return nil }
    defer { lock.leave() }
    let best = blocks.indices.filter { blocks[$0].capacity >= needed }
      .min { blocks[$0].capacity < blocks[$1].capacity }
    guard let best else { return nil }
    return remove(at: best)
  }

  /// Returns the blocks that have to go instead, perhaps the new one itself.
  func keep(_ block: Scratch) -> [Scratch] {
    guard block.capacity <= limit, tryLock() else { return [block] }
    defer { lock.leave() }
    blocks.append(block)
    bytes &+= block.capacity
    var dropped: [Scratch] = []
    while bytes > limit || blocks.count > 16 {
      guard let smallest = blocks.indices.min(by: { blocks[$0].capacity < blocks[$1].capacity }) else { break }
      dropped.append(remove(at: smallest))
    }
    return dropped
  }

  func takeAll() -> [Scratch] {
    guard tryLock() else { return [] }
    defer { lock.leave() }
    let all = blocks
    blocks.removeAll(keepingCapacity: true)
    bytes = 0
    return all
  }

  private func remove(at index: Int) -> Scratch {
    let block = blocks.remove(at: index)
    bytes &-= block.capacity
    return block
  }

  private func tryLock() -> Bool {
    for _ in 0..<1000 {
      if lock.tryEnter() { return true }
      tamis_shims_pause()
    }
    return false
  }
}
