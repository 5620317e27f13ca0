// Memory that ends, up to alignment, where an unmapped page begins: reading or writing beyond it kills the test.

import Glibc

package final class GuardedMemory {
  package let base: UnsafeMutableRawPointer
  package let end: UnsafeMutableRawPointer
  private let mapped: UnsafeMutableRawPointer
  private let length: Int

  package struct NoMemory: Error {}

  /// `bytes` (a multiple of the alignment, or rounded up to one), 0xff: NaN in every type, so that nothing may rely
  /// on fresh memory.
  package init(bytes: Int, alignment: Int = 1) throws {
    let page = Int(sysconf(Int32(_SC_PAGESIZE)))
    let rounded = (bytes + alignment - 1) / alignment * alignment
    length = (rounded + page - 1) / page * page + page
    guard let memory = mmap(nil, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
      memory != MAP_FAILED
    else { throw NoMemory() }
    mapped = memory
    end = memory + (length - page)
    base = end - rounded
    guard mprotect(end, page, PROT_NONE) == 0 else { throw NoMemory() }
    memset(base, 0xff, rounded)
  }

  deinit { munmap(mapped, length) }
}
