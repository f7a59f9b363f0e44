// The Go service of the sample system: what is in stock.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
)

func main() {
	out := bufio.NewWriterSize(os.Stdout, 0)
	lines := make(chan string, 1024)
	go func() {
		for line := range lines {
			fmt.Fprintln(out, line)
			out.Flush()
		}
	}()
	answer := func(w http.ResponseWriter, r *http.Request, status int, body any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(body)
		lines <- fmt.Sprintf("%s %s %d", r.Method, r.URL.RequestURI(), status)
	}
	http.HandleFunc("/stock/", func(w http.ResponseWriter, r *http.Request) {
		item, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/stock/"))
		if err != nil {
			answer(w, r, http.StatusBadRequest, map[string]string{"error": err.Error()})
			return
		}
		answer(w, r, http.StatusOK, map[string]int{"item": item, "stock": item % 7})
	})
	http.HandleFunc("/broken", func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, http.StatusInternalServerError, map[string]string{"error": "broken on purpose"})
	})
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, http.StatusNotFound, map[string]string{"error": "no such path"})
	})
	log.Fatal(http.ListenAndServe(os.Getenv("SAMPLE_LISTEN"), nil))
}
