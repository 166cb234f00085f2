// See the file "COPYING" in the main distribution directory for copyright.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace trafficllm_feed {

/**
 * What is kept for flows under way, found by the number that goes out with the flow and comes back with its verdict. Places are used
 * again; a number is not, so a late answer finds nothing instead of another flow.
 */
template<class Entry>
class Ledger {
public:
    /** Keeps an entry; gives its number, which is never 0. */
    uint64_t Put(Entry entry) {
        uint32_t place = 0;

        if ( free.empty() ) {
            place = static_cast<uint32_t>(places.size());
            places.emplace_back();
            // So that giving a place back never needs memory.
            free.reserve(places.capacity());
        }
        else {
            place = free.back();
            free.pop_back();
        }

        places[place].entry.emplace(std::move(entry));
        ++size;
        return uint64_t(places[place].round) << 32 | place;
    }

    /** The entry of a number, while it is kept. */
    Entry* Find(uint64_t number) {
        auto place = static_cast<uint32_t>(number);

        if ( place >= places.size() || places[place].round != number >> 32 || ! places[place].entry )
            return nullptr;

        return &*places[place].entry;
    }

    /** Gives the entry of a number back, and keeps it no longer. */
    std::optional<Entry> Take(uint64_t number) {
        if ( ! Find(number) )
            return std::nullopt;

        auto& place = places[static_cast<uint32_t>(number)];
        std::optional<Entry> taken = std::move(place.entry);
        place.entry.reset();
        // The round 0 is left out, so that no number is 0.
        place.round = place.round == UINT32_MAX ? 1 : place.round + 1;
        free.push_back(static_cast<uint32_t>(number));
        --size;
        return taken;
    }

    /** Entries that are kept. */
    size_t Size() const { return size; }

    /** Keeps those no more of which `which(const Entry&)` is true; `take` gets each of them. */
    template<class Predicate, class Function>
    void TakeIf(Predicate&& which, Function&& take) {
        for ( size_t i = 0; i < places.size(); i++ )
            if ( places[i].entry && which(std::as_const(*places[i].entry)) )
                take(std::move(*Take(uint64_t(places[i].round) << 32 | i)));
    }

    /** Keeps nothing any more; `take` gets each entry. */
    template<class Function>
    void Clear(Function&& take) {
        TakeIf([](const Entry&) { return true; }, take);
    }

private:
    struct Place {
        std::optional<Entry> entry;
        uint32_t round = 1;
    };

    std::vector<Place> places;
    std::vector<uint32_t> free;
    size_t size = 0;
};

} // namespace trafficllm_feed
