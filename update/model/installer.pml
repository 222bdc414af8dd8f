/*
 * Installer, boot control, floors and sealing of package update, with a power
 * cut possible at every step. Phases and steps carry the code's names: every
 * line that this model prints is an event that the code produces too, and
 * TestModelTracesAreTheCodes replays them.
 *
 *   spin -a installer.pml && cc -w -DSAFETY -o pan pan.c && ./pan       # all of it
 *   spin -n1 installer.pml                                             # one trace
 *
 * Safety, asserted where it could break:
 *   A1  the node can always boot
 *   A2  a slot that can be booted holds a release that was read back whole
 *   A3  no floor is above what is committed
 *   A4  the volume opens in whatever is booted
 *   A5  the running slot is never written
 */
#ifndef LAST
#define LAST 2          /* releases 1 (runs at first) to LAST */
#endif
#ifndef MAXCUTS
#define MAXCUTS 255     /* 255: no bound */
#endif
#define TRIES 3

mtype = { boot_invalidate, boot_invalidated, boot_good, boot_made_good, boot_arm, boot_armed,
	raise_floors, raised_floors, write_slot, preflight, before_reboot, after_reboot };
mtype = { Idle, Writing, Verified, Armed, Trial, Committing, Committed, RolledBack };

/* the boot loader */
bool good[2]; byte tries[2]; byte defaultSlot; byte running;
/* the slots: which release is in it whole; 0 for none */
byte content[2];
/* the journal */
mtype phase; byte jslot, jrelease; bool failed[LAST + 1]; bool rebootNeeded;
/* floors and sealing */
byte floor; bool opens[LAST + 1];
/* the world */
bool healthy[LAST + 1]; byte version; byte cuts; bool rest; byte newest;

#define other(s) (1 - (s))
#define SLOT(s) ((s) + 97)

inline invariants() {
	assert(!(good[0] || tries[0] > 0) || content[0] > 0);                  /* A2 */
	assert(!(good[1] || tries[1] > 0) || content[1] > 0);
	assert(floor == 1 || (good[0] && content[0] >= floor) || (good[1] && content[1] >= floor)); /* A3 */
}

/* loader is what the boot loader does at power-on. */
inline loader() {
	atomic {
		if
		:: tries[0] > 0 && !good[0] -> running = 0; tries[0]--
		:: !(tries[0] > 0 && !good[0]) && tries[1] > 0 && !good[1] -> running = 1; tries[1]--
		:: else -> assert(good[defaultSlot]); running = defaultSlot           /* A1 */
		fi;
		assert(content[running] > 0 && opens[content[running]]);              /* A1, A4 */
		printf("boot %c\n", SLOT(running))
	}
}

#define CUT(name) :: cuts < MAXCUTS -> cuts = cuts + (MAXCUTS != 255); printf("cut %e\n", name); goto power
#define CUTS(name, s) :: cuts < MAXCUTS -> cuts = cuts + (MAXCUTS != 255); printf("cut %e %c\n", name, SLOT(s)); goto power

/* journal is session.move: durable, then the power may go. */
inline journal(p) {
	atomic { phase = p; printf("phase %e\n", p); invariants() };
	if
	:: skip
	CUT(p)
	fi
}

inline invalidate(s) {
	if
	:: skip
	CUTS(boot_invalidate, s)
	fi;
	atomic {
		good[s] = false; tries[s] = 0;
		if
		:: good[other(s)] -> defaultSlot = other(s)
		:: else
		fi;
		invariants()
	};
	if
	:: skip
	CUTS(boot_invalidated, s)
	fi
}

/* fallBack takes jslot out of service. */
inline fallBack() {
	invalidate(jslot);
	atomic { rebootNeeded = (running == jslot); failed[jrelease] = true };
	journal(RolledBack)
}

inline commit() {
	if
	:: skip
	CUTS(boot_good, jslot)
	fi;
	atomic { good[jslot] = true; tries[jslot] = 0; defaultSlot = jslot; invariants() };
	if
	:: skip
	CUTS(boot_made_good, jslot)
	fi;
	if
	:: skip
	CUT(raise_floors)
	fi;
	atomic { floor = (jrelease > floor -> jrelease : floor); invariants() };
	if
	:: skip
	CUT(raised_floors)
	fi;
	journal(Committed)
}

inline resume() {
	if
	:: phase == Idle || phase == Committed || phase == RolledBack ->
		if
		:: !good[running] -> jslot = running; fallBack()
		:: good[running] && tries[other(running)] > 0 -> invalidate(other(running)); rebootNeeded = false
		:: else -> rebootNeeded = false
		fi
	:: phase == Writing -> assert(running != jslot)
	:: phase == Verified || phase == Armed ->
		if
		:: running == jslot -> journal(Trial)
		:: running != jslot && tries[jslot] > 0 && phase == Verified -> journal(Armed)
		:: running != jslot && tries[jslot] > 0 && phase == Armed -> skip
		:: running != jslot && tries[jslot] == 0 && phase == Verified -> journal(Writing)
		:: else -> fallBack()
		fi
	:: phase == Trial ->
		if
		:: running == jslot -> skip
		:: running != jslot && tries[jslot] > 0 -> journal(Armed)
		:: else -> fallBack()
		fi
	:: phase == Committing ->
		if
		:: running == jslot || good[jslot] -> commit()
		:: else -> fallBack()
		fi
	fi
}

inline install(r) {
	invalidate(other(running));
	atomic { jslot = other(running); jrelease = r };
	assert(jslot != running);                                                 /* A5 */
	journal(Writing);
	if
	:: content[jslot] == r -> skip          /* written by an earlier attempt */
	:: content[jslot] != r ->
		content[jslot] = 0;
		if
		:: skip
		CUT(write_slot)
		fi;
		content[jslot] = r                  /* synced, read back, compared */
	fi;
	if
	:: skip
	CUT(preflight)
	fi;
	opens[r] = true;
	journal(Verified);
	if
	:: skip
	CUTS(boot_arm, jslot)
	fi;
	atomic { good[jslot] = false; tries[jslot] = TRIES; invariants() };
	if
	:: skip
	CUTS(boot_armed, jslot)
	fi;
	journal(Armed)
}

inline confirm() {
	if
	:: healthy[jrelease] -> journal(Committing); commit()
	:: !healthy[jrelease] -> fallBack()
	fi
}

active proctype node() {
	byte i;
	atomic {
		content[0] = 1; good[0] = true; defaultSlot = 0; running = 0;
		phase = Idle; floor = 1; opens[1] = true; newest = 2;
		for (i : 2 .. LAST) {
			if
			:: healthy[i] = true
			:: healthy[i] = false
			fi;
			printf("healthy %d %d\n", i, healthy[i])
		}
	};
live:
	resume();
	if
	:: phase == Armed || rebootNeeded -> goto reboot
	:: phase == Trial && !rebootNeeded -> confirm();
		if
		:: rebootNeeded -> goto reboot
		:: else -> goto live
		fi
	:: phase == Committed && !rebootNeeded && jrelease == newest && newest == LAST -> goto done
	:: phase == Committed && !rebootNeeded && jrelease == newest && newest < LAST -> newest++; goto live
	:: (phase == RolledBack || phase == Writing || phase == Idle || (phase == Committed && jrelease < newest)) && !rebootNeeded && failed[newest] ->
		if
		:: newest == LAST -> goto done
		:: newest < LAST -> newest++; goto live
		fi
	:: (phase == RolledBack || phase == Writing || phase == Idle || (phase == Committed && jrelease < newest)) && !rebootNeeded && !failed[newest] ->
		install(newest); goto live
	fi;
reboot:
	if
	:: skip
	CUT(before_reboot)
	fi;
	loader();
	if
	:: skip
	CUT(after_reboot)
	fi;
	goto live;
power:
	loader();
	goto live;
done:
	atomic {
		assert(good[running]);
		assert(failed[LAST] || content[running] == LAST);
		printf("rest %c\n", SLOT(running))
	}
}
