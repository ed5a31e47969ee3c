// The models of the machine, asked for once and again after something changed on the shelf.
import * as api from "./api.js";

let list;
export const modelList = () =>
  (list ??= api.models().catch((error) => {
    list = undefined;
    throw error;
  }));
export const forgetModels = () => {
  list = undefined;
};

const usable = (model) => model.here && !model.problem;
export const drawsFromWords = (model) => usable(model) && model.draws === true;
export const hasTokenizer = (model) => usable(model) && model.tokenizer === true;
