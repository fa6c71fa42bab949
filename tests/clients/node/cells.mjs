// What Node's client programs share; programs/cells.py says how such a program is told what to do and tells what came.
export const task = JSON.parse(process.argv[2]);

export const answer = (text, finish_reason = null, usage = null) => ({ text, finish_reason, usage });
export const streamed = (pieces, finish_reason = null, usage = null) => ({ pieces, finish_reason, usage });

export async function run(cells) {
  const results = {};
  for (const [name, cell] of Object.entries(cells)) {
    try {
      results[name] = (await cell()) ?? null;
    } catch (error) {
      results[name] = { error: String(error?.stack ?? error) };
    }
  }
  console.log(JSON.stringify(results));
}
