// Owns what a cache knows about its living sequences: a list of entries, searched for the longest common beginning.
// Entries lie in the context's memory. Their owners read them freely; every change that others may see is made under
// the cache's lock.

import TamisFormats
import TamisRuntime

/// A sequence's page table [pages], the files of its pages [pages] and its token ids [pages * pageTokens] in one block.
struct Ledger {
  let memory: UnsafeMutableRawPointer
  let pages: Int
  let bytes: Int

  init(_ context: Context, pages: Int, pageTokens: Int) throws(TamisError) {
    let tokenBytes = try Size.product(pages, pageTokens, MemoryLayout<Int32>.size)
    bytes = try Size.sum(Size.product(pages, 2 &* MemoryLayout<UnsafeRawPointer>.size), tokenBytes)
    memory = try context.allocate(bytes: bytes, what: "sequence")
    self.pages = pages
  }

  var table: UnsafeMutablePointer<UnsafeRawPointer> { memory.assumingMemoryBound(to: UnsafeRawPointer.self) }
  private var files: UnsafeMutablePointer<Unmanaged<MappedFile>?> {
    (table + pages).withMemoryRebound(to: Unmanaged<MappedFile>?.self, capacity: 1) { $0 }
  }
  var tokens: UnsafeMutablePointer<Int32> { (table + 2 &* pages).withMemoryRebound(to: Int32.self, capacity: 1) { $0 } }

  func page(_ number: Int) -> Page { Page(UnsafeMutableRawPointer(mutating: table[number]), files[number]) }

  func setPage(_ number: Int, _ page: Page) {
    table[number] = UnsafeRawPointer(page.memory)
    files[number] = page.file
  }

  /// Takes the first `pages` pages and `tokens` ids of another ledger.
  func copy(_ other: Ledger, pages: Int, tokens: Int) {
    table.update(from: other.table, count: pages)
    files.update(from: other.files, count: pages)
    self.tokens.update(from: other.tokens, count: tokens)
  }
}

struct Entry {
  /// nil: a sequence that has never held a token.
  var ledger: Ledger?
  var length = 0
  /// Rows from here on are being written: they match nothing, so that no page is shared while it changes.
  var stable = Int.max
  var next: UnsafeMutablePointer<Entry>?
  var previous: UnsafeMutablePointer<Entry>?
}

struct Registry {
  private var head: UnsafeMutablePointer<Entry>?
  private(set) var count = 0

  /// One store makes the entry part of the list, so that a process forked here can still walk it.
  mutating func insert(_ entry: UnsafeMutablePointer<Entry>) {
    let old = head
    entry.pointee.next = old
    entry.pointee.previous = nil
    head = entry
    old?.pointee.previous = entry
    count &+= 1
  }

  mutating func remove(_ entry: UnsafeMutablePointer<Entry>) {
    let next = entry.pointee.next
    if let previous = entry.pointee.previous { previous.pointee.next = next } else { head = next }
    next?.pointee.previous = entry.pointee.previous
    count &-= 1
  }

  /// Walking forward always works; what else insert and remove change is made to agree.
  mutating func repair() {
    count = 0
    var previous: UnsafeMutablePointer<Entry>?
    var entry = head
    while let here = entry {
      here.pointee.previous = previous
      previous = here
      entry = here.pointee.next
      count &+= 1
    }
  }

  /// The entry that shares the longest beginning with tokens [count], and how many tokens that is.
  func longest(
    _ tokens: UnsafePointer<Int32>, _ count: Int, pageTokens: Int
  ) -> (entry: UnsafeMutablePointer<Entry>?, length: Int) {
    var best: UnsafeMutablePointer<Entry>?
    var length = 0
    var entry = head
    while let here = entry, length < count {
      entry = here.pointee.next
      let limit = min(count, here.pointee.length, here.pointee.stable)
      guard let ledger = here.pointee.ledger, limit > length else { continue }
      // Longer than the best so far only if this one agrees where the best ended.
      guard ledger.tokens[length] == tokens[length] else { continue }
      let known = best?.pointee.ledger.map { sharedPages($0, ledger, most: length / pageTokens) &* pageTokens } ?? 0
      let common = commonLength(ledger.tokens, tokens, from: known, limit)
      if common > length {
        best = here
        length = common
      }
    }
    return (best, length)
  }

  /// How many first pages two sequences share: forks hold the same tokens there, which need not be compared again.
  private func sharedPages(_ a: Ledger, _ b: Ledger, most: Int) -> Int {
    var page = 0
    while page < most, a.table[page] == b.table[page] { page &+= 1 }
    return page
  }

  /// Negative ids are unknown tokens and equal nothing.
  private func commonLength(
    _ a: UnsafePointer<Int32>, _ b: UnsafePointer<Int32>, from known: Int, _ limit: Int
  ) -> Int {
    var i = known
    while i < limit, a[i] == b[i], a[i] >= 0 { i &+= 1 }
    return i
  }
}
