// Command webserver serves a directory over HTTP on a loopback address, where
// no other web server is at hand. TUF metadata and targets protect themselves.
//
//	webserver -dir DIR -listen 127.0.0.1:8080
package main

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"time"
)

func main() {
	dir := flag.String("dir", "", "directory to serve")
	listen := flag.String("listen", "127.0.0.1:8080", "address")
	flag.Parse()
	if *dir == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	s := &http.Server{Addr: *listen, Handler: http.FileServerFS(os.DirFS(*dir)), ReadHeaderTimeout: 5 * time.Second}
	fmt.Fprintln(os.Stderr, "webserver:", s.ListenAndServe())
	os.Exit(1)
}
