"""Says whether this interpreter has the fields of its structures at the places that it is told: see python.rs."""

import contextvars
import ctypes
import sys
import threading

MAIN, THREADS, NEXT, THREAD, CONTEXT = map(int, sys.argv[1:])
TYPE, ENTERED = 8, 40
api = ctypes.pythonapi
api.PyThreadState_Get.restype = ctypes.c_void_p


def address(name):
    return ctypes.addressof(ctypes.c_char.in_dll(api, name))


def word(at):
    return ctypes.c_uint64.from_address(at).value


def entered(context):
    return ctypes.c_int.from_address(id(context) + ENTERED).value


def check():
    states, state = [], word(word(address("_PyRuntime") + MAIN) + THREADS)
    while state and len(states) < 256:
        states.append(state)
        state = word(state + NEXT)
    state = api.PyThreadState_Get()
    assert state in states, "the list of threads"
    assert word(state + THREAD) == threading.get_ident(), "the thread"
    context = contextvars.copy_context()
    assert word(id(context) + TYPE) == address("PyContext_Type"), "the type"

    def inside():
        assert word(state + CONTEXT) == id(context), "the context"
        assert entered(context) == 1, "that it is entered"

    context.run(inside)
    assert entered(context) == 0, "that it is left"


def on_thread():
    check()
    print("right")


check()
thread = threading.Thread(target=on_thread)
thread.start()
thread.join()
