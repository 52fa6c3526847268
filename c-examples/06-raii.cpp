// 06-raii: the same in C++17 with pmemha.hpp: sessions that close themselves, and failures as exceptions.
#include <cstring>
#include <iostream>
#include <pmemha.hpp>

extern "C" {
#include "example.h"
}

int main(int argc, char *argv[])
{
	constexpr std::size_t size = 1 << 16;
	auto *memory = static_cast<char *>(map_file(file_argument(argc, argv), size));

	try {
		pmemha::session session;
		pmemha::region region = session.protect(memory, size);

		std::strcpy(memory, "written by C++");
		region.flush(memory, std::strlen(memory) + 1);
		const pmemha::lsn lsn = session.drain();
		session.wait(lsn, PMEMHA_LEVEL_DURABLE, std::chrono::seconds(30));
		std::cout << "durable up to LSN " << lsn << '\n';

		// A failure is an exception that knows its status.
		try {
			region.flush(memory + size, 1);
		} catch (const pmemha::error &e) {
			std::cout << "as expected: " << e.what() << '\n';
			if (e.status() != PMEMHA_E_RANGE)
				return 1;
		}
	} catch (const pmemha::error &e) {
		std::cerr << e.what() << " (" << pmemha_strstatus(e.status()) << ")\n";
		return 1;
	}
	munmap(memory, size);
	return 0;
}
