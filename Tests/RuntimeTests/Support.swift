// What the tests of this room share: host threads, memory that several threads count in, an allocator hook.
import Glibc
import Synchronization
import TamisRuntime

/// Runs body on `count` new host threads and waits for all.
func onThreads(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
  final class Start: Sendable {
    let index: Int
    let body: @Sendable (Int) -> Void
    init(_ index: Int, _ body: @escaping @Sendable (Int) -> Void) {
      self.index = index
      self.body = body
    }
  }
  var threads: [pthread_t] = []
  for index in 0..<count {
    var thread = pthread_t()
    let start = Unmanaged.passRetained(Start(index, body)).toOpaque()
    let made = pthread_create(&thread, nil, { argument in
      guard let argument else { return nil }
      let start = Unmanaged<Start>.fromOpaque(argument).takeRetainedValue()
      start.body(start.index)
      return nil
    }, start)
    if made == 0 { threads.append(thread) }
  }
  for thread in threads { pthread_join(thread, nil) }
}

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

/// An allocator that counts, and fails at the n-th call.
final class Allocator: @unchecked Sendable {
  private let calls = Atomic<Int>(0)
  private let bytes = Atomic<Int>(0)
  private let failing = Atomic<Int>(0)

  /// Calls so far, refused ones included.
  var callCount: Int { calls.load(ordering: .relaxed) }
  /// Bytes not given back.
  var bytesHeld: Int { bytes.load(ordering: .relaxed) }

  /// 0: never; otherwise every call from the n-th on is refused.
  func fail(from call: Int) { failing.store(call, ordering: .relaxed) }

  /// The options hold no reference: keep the allocator alive beyond the context.
  var options: ContextOptions {
    var options = ContextOptions()
    options.user = Unmanaged.passUnretained(self).toOpaque()
    options.allocate = { user, bytes, alignment in Allocator.of(user)?.allocate(bytes, alignment) }
    options.release = { user, memory, bytes in Allocator.of(user)?.release(memory, bytes) }
    return options
  }

  private static func of(_ user: UnsafeMutableRawPointer?) -> Allocator? {
    user.map { Unmanaged<Allocator>.fromOpaque($0).takeUnretainedValue() }
  }

  private func allocate(_ size: Int, _ alignment: Int) -> UnsafeMutableRawPointer? {
    let call = calls.wrappingAdd(1, ordering: .relaxed).newValue
    let limit = failing.load(ordering: .relaxed)
    if limit != 0 && call >= limit { return nil }
    var memory: UnsafeMutableRawPointer?
    guard posix_memalign(&memory, alignment, size) == 0 else { return nil }
    bytes.wrappingAdd(size, ordering: .relaxed)
    return memory
  }

  private func release(_ memory: UnsafeMutableRawPointer?, _ size: Int) {
    bytes.wrappingSubtract(size, ordering: .relaxed)
    free(memory)
  }
}

func makeContext(threads: UInt32) throws -> Context {
  var options = ContextOptions()
  options.threads = threads
  return try Context.create(options)
}

/// The status a call throws, .ok when it does not.
func status(of body: () throws(TamisError) -> Void) -> Status {
  do {
    try body()
    return .ok
  } catch {
    return error.status
  }
}
