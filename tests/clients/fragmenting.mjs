// A `ws` that says each message in three fragments, for servers on top of it.
import WebSocket from "ws";

export class Fragmenting extends WebSocket {
  static messages = 0; // which it said so far: none, where a server does not use it

  send(data, ...rest) {
    const done = rest.findLast((one) => typeof one === "function");
    const options = { binary: typeof data !== "string", ...rest.find((one) => typeof one === "object") };
    Fragmenting.messages += 1;
    const whole = Buffer.from(data);
    const third = Math.ceil(whole.length / 3);
    super.send(whole.subarray(0, third), { ...options, fin: false });
    super.send(whole.subarray(third, 2 * third), { ...options, fin: false });
    super.send(whole.subarray(2 * third), { ...options, fin: true }, done);
  }
}
