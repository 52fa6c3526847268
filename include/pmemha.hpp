// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// pmemha.hpp: libpmemha for C++17. Sessions close themselves; failures are exceptions of type pmemha::error. What each call
// does, and which threads may call it, stands in pmemha.h.
#ifndef PMEMHA_HPP
#define PMEMHA_HPP

#include <pmemha.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace pmemha {

/// A position in the group's log, as session::drain() returns it.
using lsn = std::uint64_t;

/// A call that failed: what() has the library's words.
class error : public std::runtime_error {
public:
	explicit error(pmemha_rc status) : std::runtime_error(pmemha_errormsg()), status_(status) {}

	pmemha_rc status() const noexcept { return status_; }

private:
	pmemha_rc status_;
};

/// Throws unless `status` is PMEMHA_OK.
inline void check(pmemha_rc status)
{
	if (status != PMEMHA_OK)
		throw error(status);
}

/// A protected mapping or file. A handle: copies mean the same region, and all end with their session.
class region {
public:
	/// Records stores to a protected mapping and flushes them locally.
	void flush(const void *addr, std::size_t len) { check(pmemha_flush(handle_, addr, len)); }

	/// Flushes and drains.
	lsn persist(const void *addr, std::size_t len)
	{
		lsn at = 0;
		check(pmemha_persist(handle_, addr, len, &at));
		return at;
	}

	/// Records stores at `offset` of the file, before the program flushes them itself.
	void append(std::uint64_t offset, const void *addr, std::size_t len)
	{
		check(pmemha_append(handle_, offset, addr, len));
	}

	pmemha_region *get() const noexcept { return handle_; }

private:
	friend class session;
	explicit region(pmemha_region *handle) : handle_(handle) {}

	pmemha_region *handle_;
};

/// A session with the agent of this machine, closed when destroyed.
class session {
public:
	/// Opens one; empty strings stand for the defaults of pmemha_open().
	explicit session(const std::string &socket = {}, const std::string &group = {})
	{
		check(pmemha_check_version(PMEMHA_MAJOR_VERSION, PMEMHA_MINOR_VERSION));
		check(pmemha_open(socket.empty() ? nullptr : socket.c_str(),
				  group.empty() ? nullptr : group.c_str(), &handle_));
	}

	session(session &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}

	session &operator=(session &&other) noexcept
	{
		std::swap(handle_, other.handle_);
		return *this;
	}

	session(const session &) = delete;
	session &operator=(const session &) = delete;

	/// Closes. A destructor cannot tell of an agent that is gone: who wants to know calls close() before.
	~session() { pmemha_close(&handle_); }

	void close() { check(pmemha_close(&handle_)); }

	/// Protects the file behind a range of addresses.
	pmemha::region protect(const void *addr, std::size_t len)
	{
		pmemha_region *handle = nullptr;
		check(pmemha_protect_range(handle_, addr, len, &handle));
		return pmemha::region(handle);
	}

	/// Protects a file by its path; `len` 0 means all of it.
	pmemha::region protect(const std::string &path, std::uint64_t len = 0)
	{
		pmemha_region *handle = nullptr;
		check(pmemha_protect_path(handle_, path.c_str(), len, &handle));
		return pmemha::region(handle);
	}

	/// Orders what was flushed and publishes what was recorded.
	lsn drain()
	{
		lsn at = 0;
		check(pmemha_drain(handle_, &at));
		return at;
	}

	/// Waits until everything below `at` has come as far as `level`; throws when the time is over.
	void wait(lsn at, pmemha_level level, std::chrono::milliseconds timeout)
	{
		using rep = std::chrono::milliseconds::rep;
		const auto ms = std::clamp(timeout.count(), rep{0}, rep{INT_MAX});
		check(pmemha_wait(handle_, at, level, static_cast<int>(ms)));
	}

	/// How far the group's protection has come.
	pmemha_info status() const
	{
		pmemha_info info{};
		check(pmemha_status(handle_, &info, sizeof info));
		return info;
	}

	/// The last gasp of the session's group, now.
	void last_gasp() { check(pmemha_last_gasp(handle_)); }

	pmemha_session *get() const noexcept { return handle_; }

private:
	pmemha_session *handle_ = nullptr;
};

} // namespace pmemha

#endif
